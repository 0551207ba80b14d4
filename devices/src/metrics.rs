//! The counters of each device, by the names of Firecracker's metrics file.
//!
//! Each struct lists its counters with [`list`](BlockMetrics::list), so that whoever exports them (to Prometheus, to
//! a file) needs no line per counter. Clones count together.

use prometheus_client::metrics::counter::Counter;

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $help:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default)]
        pub struct $name {
            $(#[doc = concat!($help, ".")] pub $field: Counter,)*
        }

        impl $name {
            /// Every counter, as its name, what it counts, and itself.
            pub fn list(&self) -> impl Iterator<Item = (&'static str, &'static str, &Counter)> {
                [$((stringify!($field), $help, &self.$field),)*].into_iter()
            }
        }
    };
}

counters! {
    /// What a block device counts.
    BlockMetrics {
        activate_fails: "times the device could not be started",
        cfg_fails: "accesses to the configuration space that went wrong",
        no_avail_buffer: "queue events that found no request",
        event_fails: "events that could not be handled",
        execute_fails: "requests that the host failed",
        invalid_reqs_count: "requests that made no sense",
        flush_count: "flushes done",
        queue_event_count: "queue events",
        rate_limiter_event_count: "wake-ups of the rate limiter",
        update_count: "live changes of the drive",
        update_fails: "live changes of the drive that failed",
        read_bytes: "bytes read",
        write_bytes: "bytes written",
        read_count: "reads done",
        write_count: "writes done",
        rate_limiter_throttled_events: "times the rate limiter held requests back",
        io_engine_throttled_events: "times the I/O engine was full",
        remaining_reqs_count: "requests left in the queue when its processing ended early",
        device_errors: "times the device stopped because of what the guest did",
    }
}

counters! {
    /// What an entropy device counts.
    EntropyMetrics {
        activate_fails: "times the device could not be started",
        entropy_event_fails: "requests that could not be served",
        entropy_event_count: "requests served",
        entropy_bytes: "random bytes given to the guest",
        host_rng_fails: "times the host had no randomness",
        entropy_rate_limiter_throttled: "times the rate limiter held requests back",
        rate_limiter_event_count: "wake-ups of the rate limiter",
        device_errors: "times the device stopped because of what the guest did",
    }
}

counters! {
    /// What a serial port counts.
    UartMetrics {
        error_count: "errors while serving the port",
        flush_count: "times output was flushed",
        missed_read_count: "reads that no register answers",
        missed_write_count: "writes that no register takes, and output bytes that were dropped",
        read_count: "bytes the guest read",
        write_count: "bytes the guest wrote",
    }
}

counters! {
    /// What a keyboard controller counts.
    I8042Metrics {
        error_count: "errors while serving the controller",
        missed_read_count: "reads that no register answers",
        missed_write_count: "writes that no register takes",
        read_count: "reads done",
        reset_count: "resets the guest asked for",
        write_count: "writes done",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_count_together_and_the_list_names_every_counter() {
        let metrics = UartMetrics::default();
        metrics.clone().read_count.inc_by(3);
        let read: Vec<_> = metrics.list().filter(|(_, _, counter)| counter.get() == 3).collect();
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].0, "read_count");
        assert_eq!(BlockMetrics::default().list().count(), 19);
    }
}
