//! Files of variables: `NAME=value` lines, with `export`, quotes and comments as shells and the usual libraries have
//! them. Nothing in a value is expanded.

/// What a file says: name, value and line of each variable, and the lines that are none.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    pub variables: Vec<(String, String, usize)>,
    pub malformed: Vec<usize>,
}

/// Reads the text of a file. A name that comes twice has its last value.
pub fn parse(text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim().trim_start_matches('\u{feff}');
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match assignment(line) {
            Some((name, value)) => parsed.variables.push((name, value, at + 1)),
            None => parsed.malformed.push(at + 1),
        }
    }
    parsed
}

fn assignment(line: &str) -> Option<(String, String)> {
    let line = line.strip_prefix("export ").unwrap_or(line);
    let (name, rest) = line.split_once('=')?;
    let name = name.trim();
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    let is_name = !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit());
    (is_name && name.chars().all(legal)).then_some(())?;
    Some((name.to_owned(), value(rest.trim())?))
}

/// What stands behind the `=`; `None` if a quote does not end, or something follows it.
fn value(text: &str) -> Option<String> {
    let quote = match text.chars().next() {
        Some(quote @ ('"' | '\'')) => quote,
        _ => return Some(without_comment(text).to_owned()),
    };
    let mut value = String::new();
    let mut rest = text[1..].chars();
    loop {
        match rest.next()? {
            c if c == quote => break,
            '\\' if quote == '"' => match rest.next()? {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                'r' => value.push('\r'),
                c @ ('"' | '\\' | '$') => value.push(c),
                c => value.extend(['\\', c]),
            },
            c => value.push(c),
        }
    }
    let rest = rest.as_str().trim();
    (rest.is_empty() || rest.starts_with('#')).then_some(value)
}

/// A comment begins with a `#` behind a blank.
fn without_comment(text: &str) -> &str {
    if text.starts_with('#') {
        return "";
    }
    match [" #", "\t#"].iter().filter_map(|mark| text.find(mark)).min() {
        Some(at) => text[..at].trim_end(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_shells_do() {
        let parsed = parse(
            "\u{feff}# a comment\nA=1\n\nexport B = two words # and a comment\nC=\"./node 2\" # x\nD='a\\n#b'\n\
             E=\"a\\n\\\"b\\\"\"\nF=\nG=a#b\nH=#nothing\r\n",
        );
        let found: Vec<(&str, &str, usize)> = parsed
            .variables
            .iter()
            .map(|(name, value, line)| (name.as_str(), value.as_str(), *line))
            .collect();
        let expected = [
            ("A", "1", 2),
            ("B", "two words", 4),
            ("C", "./node 2", 5),
            ("D", "a\\n#b", 6),
            ("E", "a\n\"b\"", 7),
            ("F", "", 8),
            ("G", "a#b", 9),
            ("H", "", 10),
        ];
        assert_eq!(found, expected);
        assert!(parsed.malformed.is_empty());
    }

    #[test]
    fn lines_that_are_none_are_told() {
        let parsed = parse("A\n=1\n1A=2\nB=\"x\nC='x' y\nA-B=1\nGOOD=1\n");
        assert_eq!(parsed.malformed, [1, 2, 3, 4, 5, 6]);
        assert_eq!(parsed.variables.len(), 1);
    }
}
