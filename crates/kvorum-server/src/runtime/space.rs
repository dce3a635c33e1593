//! Whether this member has space: log and store each tell what their disk says, the replica hears when the answer
//! for both changes, and the operator when either does.

use std::fmt;
use std::path::PathBuf;
use std::sync::Mutex;

use kvorum_node::Input;

use super::directory::mebibytes;
use super::peers::Inbox;

/// Who tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Log,
    Store,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Log => "log",
            Part::Store => "store",
        })
    }
}

/// What a part needs when its disk is full.
pub(crate) struct Need {
    /// Bytes that must be free, at most,
    pub(crate) bytes: u64,
    /// in this directory.
    pub(crate) dir: PathBuf,
}

impl Need {
    /// What the operator reads.
    fn complaint(&self, part: Part) -> String {
        format!(
            "the {part}'s disk is full: {} must be free in {}; writes that need space are refused; free some, and \
             writing goes on by itself",
            mebibytes(self.bytes),
            self.dir.display()
        )
    }
}

/// What they told last.
pub(crate) struct SpaceWatch {
    needs: [Need; 2],
    full: Mutex<[bool; 2]>,
    inbox: Inbox,
}

impl SpaceWatch {
    /// There is space.
    pub(crate) fn new(log: Need, store: Need, inbox: Inbox) -> Self {
        SpaceWatch {
            needs: [log, store],
            full: Mutex::default(),
            inbox,
        }
    }

    /// A part's disk is full, or is no longer.
    pub(crate) fn tell(&self, part: Part, full: bool) {
        let mut parts = self.full.lock().expect("no panic while held");
        let before = parts.contains(&true);
        let was_full = std::mem::replace(&mut parts[part as usize], full);
        if full && !was_full {
            tracing::error!("{}", self.needs[part as usize].complaint(part));
        } else if was_full && !full {
            tracing::info!("the {part}'s disk has space again");
        }
        let exhausted = parts.contains(&true);
        if exhausted != before {
            // Under the lock, so that the last news is the last to arrive.
            (self.inbox)(Input::Space { exhausted });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    fn need(dir: &str) -> Need {
        Need {
            bytes: 32 << 20,
            dir: dir.into(),
        }
    }

    #[test]
    fn the_operator_hears_how_much_and_where() {
        let told = need("/data/log").complaint(Part::Log);
        assert!(
            told.starts_with("the log's disk is full: 32 MiB must be free in /data/log;"),
            "{told}"
        );
    }

    #[test]
    fn both_parts_must_have_space() {
        let (sender, told) = mpsc::channel();
        let inbox: Inbox = Arc::new(move |input| {
            let Input::Space { exhausted } = input else {
                panic!("nothing else is told")
            };
            sender.send(exhausted).expect("the test listens");
        });
        let watch = SpaceWatch::new(need("/data/log"), need("/data/store"), inbox);
        for (part, full) in [
            (Part::Log, false),
            (Part::Log, true),
            (Part::Store, true),
            (Part::Log, false),
            (Part::Store, false),
        ] {
            watch.tell(part, full);
        }
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [true, false]);
    }
}
