//! Memory sizes as people write them.

/// Reads a memory size and gives it in MiB: a number of MiB, or one with `M`, `MiB`, `G` or `GiB`.
pub(super) fn parse_mib(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let mib_per_unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "m" | "mib" => 1,
        "g" | "gib" => 1024,
        unit => return Err(format!("unknown unit {unit:?}: write 512, 512M or 2G")),
    };
    let number: u64 = digits.parse().map_err(|_| "not a size: write 512, 512M or 2G".to_owned())?;
    match number.checked_mul(mib_per_unit) {
        Some(0) => Err("a machine needs memory: give at least 1M".to_owned()),
        Some(mib) => Ok(mib),
        None => Err("larger than any machine".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, mib) in [("512", 512), ("512M", 512), ("512MiB", 512), ("2G", 2048), ("1gib", 1024)] {
            assert_eq!(parse_mib(text), Ok(mib), "{text}");
        }
        for text in ["", "0", "0G", "M", "-1", "1.5G", "1K", "1T", "18446744073709551615G", "1é"] {
            assert!(parse_mib(text).is_err(), "{text}");
        }
    }
}
