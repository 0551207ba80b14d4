//! What the VMM counts, as Prometheus scrapes it.

use std::time::{Duration, Instant};

use super::{Vmm, WAIT};

/// Between two looks at a counter that is waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

impl Vmm {
    /// The total of one series, such as `faultless_block_read_bytes_total{drive="root"}`.
    pub fn counter(&self, series: &str) -> u64 {
        let text = self.prometheus();
        find(&text, series).unwrap_or_else(|| panic!("there is no {series} in\n{text}"))
    }

    /// Waits until a series' total is at least `least`, and returns it.
    pub fn wait_for_counter(&self, series: &str, least: u64) -> u64 {
        let deadline = Instant::now() + WAIT;
        loop {
            let total = self.counter(series);
            if total >= least {
                return total;
            }
            assert!(Instant::now() < deadline, "{series} is {total} and not {least} after {WAIT:?}");
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// All totals, as text.
    pub fn prometheus(&self) -> String {
        let answer = self.grant("GET", "/metrics/prometheus", &serde_json::Value::Null);
        String::from_utf8(answer.body).expect("metrics are text")
    }
}

fn find(text: &str, series: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_found_by_its_whole_name() {
        let text = "# TYPE a counter\na_total{d=\"x\"} 3\na_total_more 7\na_total 5\n";
        assert_eq!(find(text, "a_total{d=\"x\"}"), Some(3));
        assert_eq!(find(text, "a_total"), Some(5));
        assert_eq!(find(text, "b_total"), None);
    }
}
