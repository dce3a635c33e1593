//! Durations and sizes as people write them: a number and its unit, always.

use std::time::Duration;

const DURATION_UNITS: [(&str, u64); 6] = [
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("m", 60_000_000),
    ("h", 3_600_000_000),
    ("d", 86_400_000_000),
];
const SIZE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// Parses `750ms`, `1.5s`, `1h30m`, or `0`; down to microseconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    parse(text, &DURATION_UNITS, true).map(Duration::from_micros).ok_or_else(|| {
        format!("`{text}` is not a duration; write a number and a unit (us, ms, s, m, h, d), for example 750ms")
    })
}

/// Parses `64MiB`, `1.5GB`, or `0`; in bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    parse(text, &SIZE_UNITS, false).ok_or_else(|| {
        format!("`{text}` is not a size; write a number and a unit (B, KiB, MiB, GiB, KB, MB, GB), for example 64MiB")
    })
}

/// The shortest form that [`parse_duration`] reads back, down to microseconds.
pub fn format_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    if rest == 0 {
        return "0".to_owned();
    }
    let mut text = String::new();
    for (unit, micros) in DURATION_UNITS.iter().rev() {
        if rest >= *micros {
            text.push_str(&format!("{}{unit}", rest / micros));
            rest %= micros;
        }
    }
    text
}

/// The largest binary unit that divides it: what [`parse_size`] reads back.
pub fn format_size(bytes: u64) -> String {
    if bytes == 0 {
        return "0".to_owned();
    }
    let (unit, size) = SIZE_UNITS[..5]
        .iter()
        .rev()
        .find(|(_, size)| bytes.is_multiple_of(*size))
        .expect("one byte divides everything");
    format!("{}{unit}", bytes / size)
}

/// A sum of numbers with units; several only where `compound`. `None` if malformed or beyond `u64`.
fn parse(text: &str, units: &[(&str, u64)], compound: bool) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut total = 0u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .filter(|at| *at > 0)?;
        let (number, tail) = rest.split_at(digits);
        let end = tail
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let factor = units.iter().find(|(name, _)| *name == unit)?.1;
        total = total.checked_add(scale(number, factor)?)?;
        rest = tail;
        if !compound && !rest.is_empty() {
            return None;
        }
    }
    (!text.is_empty()).then_some(total)
}

/// A decimal number times `factor`, exactly; what is finer than one is an error.
fn scale(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u64 = whole.parse().ok()?;
    let fraction = fraction.trim_end_matches('0');
    let mut value = whole.checked_mul(factor)?;
    if !fraction.is_empty() {
        let divisor = 10u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(factor);
        if part % u128::from(divisor) != 0 {
            return None;
        }
        value = value.checked_add(u64::try_from(part / u128::from(divisor)).ok()?)?;
    }
    Some(value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let check = |text: &str, micros: u64| {
            assert_eq!(parse_duration(text), Ok(Duration::from_micros(micros)), "{text}");
        };
        check("0", 0);
        check("250us", 250);
        check("750ms", 750_000);
        check("1.5s", 1_500_000);
        check("1h30m", 5_400_000_000);
        check("2d", 172_800_000_000);
        for bad in [
            "",
            "5",
            "1.5",
            "s",
            "5 s",
            "-1s",
            "5S",
            "1.2.3s",
            "1x",
            "0.5us",
            ".5s",
            "999999999999d",
            "٣s",
        ] {
            let error = parse_duration(bad).unwrap_err();
            assert!(error.contains("for example 750ms"), "{bad}: {error}");
        }
    }

    #[test]
    fn sizes() {
        let check = |text: &str, bytes: u64| assert_eq!(parse_size(text), Ok(bytes), "{text}");
        check("0", 0);
        check("100B", 100);
        check("64MiB", 64 << 20);
        check("1.5GB", 1_500_000_000);
        check("0.5KiB", 512);
        for bad in ["", "64", "64M", "64mib", "1KiB1B", "0.3B", "99999999999TiB"] {
            let error = parse_size(bad).unwrap_err();
            assert!(error.contains("for example 64MiB"), "{bad}: {error}");
        }
    }

    #[test]
    fn what_is_printed_is_read_back() {
        for micros in [
            0,
            1,
            999,
            1_000,
            750_000,
            61_000_001,
            3_600_000_000,
            90_061_000_000,
        ] {
            let duration = Duration::from_micros(micros);
            assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
        assert_eq!(format_duration(Duration::from_millis(1500)), "1s500ms");
        for bytes in [0, 1, 1023, 1024, 1_572_864, 512 << 20, 3 << 40] {
            assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }
        assert_eq!(format_size(1_572_864), "1536KiB");
    }
}
