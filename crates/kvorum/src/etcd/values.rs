//! What was said, flag by flag, and how Go reads it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::flags::{Flag, Kind, find};

/// Where a value stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the command line.
    Flag,
    /// In the environment.
    Environment,
    /// In the file that `--config-file` names.
    File,
}

/// The values that were given, by the flags' names.
#[derive(Debug, Default)]
pub struct Values {
    given: BTreeMap<&'static str, (String, Place)>,
    /// What was strange but no error, one line each.
    pub warnings: Vec<String>,
    /// What is worth a line in the log.
    pub notes: Vec<String>,
}

/// Why a value is none, in Go's words.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Values {
    /// Notes a value; the last one counts.
    ///
    /// # Errors
    /// It does not read as the flag's kind of value.
    pub fn set(&mut self, flag: &'static Flag, text: &str, place: Place) -> Result<(), Malformed> {
        check(flag.kind, text)?;
        self.given.insert(flag.name, (text.to_owned(), place));
        Ok(())
    }

    /// The value that was given.
    pub fn given(&self, name: &str) -> Option<&str> {
        self.given.get(name).map(|(text, _)| text.as_str())
    }

    /// Where it was given.
    pub fn place(&self, name: &str) -> Option<Place> {
        self.given.get(name).map(|(_, place)| *place)
    }

    /// All that was given.
    pub fn all(&self) -> impl Iterator<Item = (&'static Flag, &str)> {
        self.given
            .iter()
            .map(|(name, (text, _))| (find(name).expect("values are of flags"), text.as_str()))
    }

    /// Takes a value away, with its place.
    pub fn take(&mut self, name: &str) -> Option<(String, Place)> {
        self.given.remove(name)
    }

    /// Puts a value under another flag's name.
    pub fn put(&mut self, name: &'static str, value: (String, Place)) {
        self.given.insert(name, value);
    }

    /// The value that counts.
    pub fn text(&self, name: &str) -> &str {
        self.given(name)
            .unwrap_or_else(|| find(name).expect("a flag of the table").default)
    }

    /// Of a switch.
    pub fn is_set(&self, name: &str) -> bool {
        boolean(self.text(name)).expect("checked when it was given")
    }

    /// Of a whole number.
    pub fn number(&self, name: &str) -> u64 {
        unsigned(self.text(name)).expect("checked when it was given")
    }

    /// Of a number that may be negative.
    pub fn integer(&self, name: &str) -> i64 {
        signed(self.text(name)).expect("checked when it was given")
    }

    /// Of a time; a negative one is none, as where etcd looks whether it is greater than 0.
    pub fn duration(&self, name: &str) -> Duration {
        let nanoseconds = nanoseconds(self.text(name)).expect("checked when it was given");
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0))
    }

    /// The parts of a list.
    pub fn list(&self, name: &str) -> Vec<String> {
        let parts = self.text(name).split(',').map(str::trim);
        parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
    }
}

/// Whether two values of this kind mean the same.
pub fn is_same(kind: Kind, one: &str, other: &str) -> bool {
    match kind {
        Kind::Bool => boolean(one).is_some_and(|value| Some(value) == boolean(other)),
        Kind::Uint => unsigned(one).is_some_and(|value| Some(value) == unsigned(other)),
        Kind::Int => signed(one).is_some_and(|value| Some(value) == signed(other)),
        Kind::Duration => nanoseconds(one).is_some_and(|value| Some(value) == nanoseconds(other)),
        Kind::Text | Kind::Texts | Kind::Urls => one == other,
    }
}

fn check(kind: Kind, text: &str) -> Result<(), Malformed> {
    let is_good = match kind {
        Kind::Bool => boolean(text).is_some(),
        Kind::Uint => unsigned(text).is_some(),
        Kind::Int => signed(text).is_some(),
        Kind::Duration => nanoseconds(text).is_some(),
        Kind::Text | Kind::Texts => true,
        Kind::Urls => match text.is_empty() {
            true => true,
            false => return super::urls::parse_list(text).map(drop).map_err(Malformed),
        },
    };
    match is_good {
        true => Ok(()),
        false => Err(Malformed("parse error".to_owned())),
    }
}

/// As Go's `strconv.ParseBool`.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// As Go's `strconv.ParseUint` with base 0: decimal, or `0x`, `0o`, `0b`.
fn unsigned(text: &str) -> Option<u64> {
    let radix = |prefix: char| match prefix.to_ascii_lowercase() {
        'x' => Some(16),
        'o' => Some(8),
        'b' => Some(2),
        _ => None,
    };
    let plain = |text: &str, radix| {
        let is_plain = !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
        is_plain.then(|| u64::from_str_radix(text, radix).ok()).flatten()
    };
    let mut chars = text.chars();
    match (chars.next(), chars.next().and_then(radix)) {
        (Some('0'), Some(radix)) => plain(chars.as_str(), radix),
        (Some('0'), None) if text.len() > 1 => plain(text, 8),
        _ => plain(text, 10),
    }
}

fn signed(text: &str) -> Option<i64> {
    match text.strip_prefix('-') {
        Some(rest) => 0i64.checked_sub_unsigned(unsigned(rest)?),
        None => i64::try_from(unsigned(text.strip_prefix('+').unwrap_or(text))?).ok(),
    }
}

/// As Go's `time.ParseDuration`: `1h15m30.5s`, `-1s`, `0`.
pub fn nanoseconds(text: &str) -> Option<i64> {
    let (sign, rest) = match text.as_bytes().first()? {
        b'-' => (-1.0, &text[1..]),
        b'+' => (1.0, &text[1..]),
        _ => (1.0, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let (mut rest, mut total) = (rest, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        total += number
            * match &rest[..unit] {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    // Beyond 292 years it is no duration of Go's.
    (total < i64::MAX as f64).then_some((sign * total) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_go() {
        for (text, expected) in [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("5s", Some(5_000_000_000)),
            ("1h15m30.5s", Some(4_530_500_000_000)),
            ("100ms", Some(100_000_000)),
            ("1.5us", Some(1_500)),
            ("-1s", Some(-1_000_000_000)),
            ("10ns", Some(10)),
            (".5s", Some(500_000_000)),
            ("", None),
            ("5", None),
            ("s", None),
            ("-", None),
            ("1d", None),
            ("1s ", None),
            ("1..5s", None),
            ("99999999h", None),
        ] {
            assert_eq!(nanoseconds(text), expected, "{text}");
        }
    }

    #[test]
    fn numbers_read_as_in_go() {
        assert_eq!(unsigned("100"), Some(100));
        assert_eq!(unsigned("0x10"), Some(16));
        assert_eq!(unsigned("010"), Some(8));
        assert_eq!(unsigned("0"), Some(0));
        for bad in ["", "-1", "+1", "1s", "0x", "99999999999999999999", "é", "0é"] {
            assert_eq!(unsigned(bad), None, "{bad}");
        }
        assert_eq!(signed("-1"), Some(-1));
        assert_eq!(signed("+7"), Some(7));
        assert_eq!(signed("-9223372036854775808"), Some(i64::MIN));
        assert_eq!(signed("9223372036854775808"), None);
    }
}
