//! The demo's output: plain lines, and on a terminal one status line, rewritten in place, above the prompt.

use std::io::{self, Write};
use std::time::Duration;

use kvorum_client::proto::v1::StatusResponse;
use tokio::time::Instant;

use super::is_screen;
use crate::verbs::status::{notes, role};

/// Where lines cannot be rewritten, one that differs only in numbers is printed this often.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);
const PROMPT: &str = "kvorum> ";

const BOLD_GREEN: &str = "\x1b[1;32m";
const RED: &str = "\x1b[31m";
const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// A status line: pieces with a colour each, and what of them is worth a line of its own when it changes.
#[derive(Clone, Debug, Default)]
pub struct Line {
    pieces: Vec<(&'static str, String)>,
    /// Who is what, without the numbers.
    shape: String,
}

impl Line {
    /// Adds a member; `majority` says whether the processes of a majority run.
    pub fn member(&mut self, name: &str, running: bool, majority: bool, status: Option<&StatusResponse>) {
        let (colour, word, applied) = match status {
            // A member notices it a little later.
            Some(status) if !majority || !status.majority_contact => {
                (RED, "cut off", Some(status.applied_index))
            }
            Some(status) => {
                let role = role(status);
                let colour = if role == "leader" { BOLD_GREEN } else { "" };
                let word = if notes(status).is_empty() || role == "leader" {
                    role
                } else {
                    "no leader"
                };
                (colour, word, Some(status.applied_index))
            }
            None if running => (RED, "no answer", None),
            None => (RED, "down", None),
        };
        self.shape.push_str(&format!("{name}={word} "));
        let applied = applied.map_or(String::new(), |index| format!(" {index}"));
        self.pieces.push((colour, format!("{name} {word}{applied}")));
    }

    /// Adds what holds for all.
    pub fn cluster(&mut self, term: u64, revision: i64, rate: f64) {
        self.shape.push_str(&term.to_string());
        self.pieces.push((DIM, format!("term {term}")));
        self.pieces.push((DIM, format!("revision {revision}")));
        if rate >= 1.0 {
            self.pieces.push((DIM, format!("{rate:.0}/s")));
        }
    }

    /// As text of at most `width` columns.
    fn render(&self, width: usize, colours: bool) -> String {
        let mut text = String::new();
        let mut used = 0;
        for (colour, piece) in &self.pieces {
            let separator = if used == 0 { "" } else { "  " };
            let columns = separator.len() + piece.chars().count();
            if used + columns > width {
                break;
            }
            used += columns;
            text.push_str(separator);
            match colours && !colour.is_empty() {
                true => text.push_str(&format!("{colour}{piece}{RESET}")),
                false => text.push_str(piece),
            }
        }
        text
    }
}

/// Where the demo prints.
pub struct Screen {
    in_place: bool,
    colours: bool,
    prompt: bool,
    /// The status line on the screen, if there is one, and whether the cursor stands after it (with the prompt).
    shown: Option<Line>,
    plain_at: Option<Instant>,
}

impl Screen {
    /// Standard output.
    pub fn new() -> Self {
        let in_place = is_screen();
        let colours = in_place && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Screen {
            in_place,
            colours,
            prompt: false,
            shown: None,
            plain_at: None,
        }
    }

    /// Whether a prompt stands below the status line.
    pub fn set_prompt(&mut self, prompt: bool) {
        self.prompt = prompt;
    }

    /// The person entered a line: the cursor stands at the start of a new one, and the status above what was typed
    /// goes, because it would stay there as if it still held.
    pub fn entered(&mut self, typed: &str) {
        if self.in_place && self.shown.take().is_some() && self.prompt {
            self.print(&above_gone(typed, columns()));
        }
    }

    /// Prints text, in answer to a command.
    pub fn say(&mut self, text: &str) {
        let erase = self.erase();
        self.print(&format!("{erase}{text}\n"));
    }

    /// Prints what happened by itself.
    pub fn event(&mut self, text: &str) {
        let line = self.shown.clone();
        let erase = self.erase();
        let text = match self.colours {
            true => format!("{DIM}*{RESET} {text}"),
            false => format!("* {text}"),
        };
        self.print(&format!("{erase}{text}\n"));
        if let (true, Some(line)) = (self.in_place, line) {
            self.status(line);
        }
    }

    /// Renews the status line.
    pub fn status(&mut self, line: Line) {
        if !self.in_place {
            let due = self.plain_at.is_none_or(|at| at.elapsed() >= PLAIN_INTERVAL);
            let shape_changed = self.shown.as_ref().is_none_or(|shown| shown.shape != line.shape);
            let text = line.render(usize::MAX, false);
            let changed = self
                .shown
                .as_ref()
                .is_none_or(|shown| shown.render(usize::MAX, false) != text);
            if shape_changed || (due && changed) {
                self.print(&format!("{text}\n"));
                self.plain_at = Some(Instant::now());
                self.shown = Some(line);
            }
            return;
        }
        let text = line.render(columns() - 1, self.colours);
        if self
            .shown
            .as_ref()
            .is_some_and(|shown| shown.pieces == line.pieces)
        {
            return;
        }
        let output = match (self.shown.is_some(), self.prompt) {
            // The cursor stands somewhere in the line below, behind what was typed: it goes back there.
            (true, true) => format!("\x1b7\x1b[1A\r\x1b[2K{text}\x1b8"),
            (true, false) => format!("\r\x1b[2K{text}"),
            (false, true) => format!("\r\x1b[2K{text}\n{PROMPT}"),
            (false, false) => format!("\r\x1b[2K{text}"),
        };
        self.print(&output);
        self.shown = Some(line);
    }

    /// Leaves the screen in order.
    pub fn end(&mut self) {
        if self.in_place && self.shown.take().is_some() {
            self.print("\n");
        }
    }

    /// What removes the status line and the prompt.
    fn erase(&mut self) -> &'static str {
        if !self.in_place || self.shown.take().is_none() {
            return "";
        }
        if self.prompt {
            "\r\x1b[2K\x1b[1A\x1b[2K"
        } else {
            "\r\x1b[2K"
        }
    }

    fn print(&self, text: &str) {
        let mut out = io::stdout().lock();
        // A terminal that went away is noticed by its signal.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

/// What deletes the line above the prompt and what was typed there, which takes several rows if it is long.
fn above_gone(typed: &str, columns: usize) -> String {
    let rows = (PROMPT.len() + typed.chars().count()) / columns + 1;
    format!("\x1b[{}A\r\x1b[M\x1b[{rows}B\r", rows + 1)
}

/// The terminal's width.
fn columns() -> usize {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 1 => size.ws_col.into(),
        _ => 80,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvorum_client::proto::v1::{Role, Suffrage};

    #[test]
    fn the_old_status_goes_when_a_line_is_entered() {
        assert_eq!(above_gone("kill 1", 80), "\x1b[2A\r\x1b[M\x1b[1B\r");
        assert_eq!(above_gone(&"x".repeat(80), 80), "\x1b[3A\r\x1b[M\x1b[2B\r");
    }

    #[test]
    fn the_status_line() {
        let mut status = StatusResponse {
            majority_contact: true,
            leader_id: 1,
            applied_index: 7,
            ..Default::default()
        };
        status.set_role(Role::Leader);
        status.set_suffrage(Suffrage::Voter);
        let mut line = Line::default();
        line.member("node-1", true, true, Some(&status));
        line.member("node-2", false, true, None);
        status.majority_contact = false;
        line.member("node-3", true, true, Some(&status));
        line.cluster(2, 40, 12.4);
        let full = "node-1 leader 7  node-2 down  node-3 cut off 7  term 2  revision 40  12/s";
        assert_eq!(line.render(200, false), full);
        assert_eq!(line.render(30, false), "node-1 leader 7  node-2 down");
        assert!(
            line.render(200, true)
                .starts_with("\x1b[1;32mnode-1 leader 7\x1b[0m")
        );
        assert_eq!(line.shape, "node-1=leader node-2=down node-3=cut off 2");

        // A leader whose followers were killed does not know yet.
        status.majority_contact = true;
        let mut line = Line::default();
        line.member("node-1", true, false, Some(&status));
        assert_eq!(line.render(200, false), "node-1 cut off 7");
    }
}
