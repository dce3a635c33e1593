//! Whether this member has space: log and store each tell what their disk says, the replica hears when the answer
//! for both changes.

use std::sync::Mutex;

use kvorum_node::Input;

use super::peers::Inbox;

/// Who tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Log,
    Store,
}

/// What they told last.
pub(crate) struct SpaceWatch {
    full: Mutex<[bool; 2]>,
    inbox: Inbox,
}

impl SpaceWatch {
    /// There is space.
    pub(crate) fn new(inbox: Inbox) -> Self {
        SpaceWatch {
            full: Mutex::default(),
            inbox,
        }
    }

    /// A part's disk is full, or is no longer.
    pub(crate) fn tell(&self, part: Part, full: bool) {
        let mut parts = self.full.lock().expect("no panic while held");
        let before = parts.contains(&true);
        parts[part as usize] = full;
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

    #[test]
    fn both_parts_must_have_space() {
        let (sender, told) = mpsc::channel();
        let watch = SpaceWatch::new(Arc::new(move |input| {
            let Input::Space { exhausted } = input else {
                panic!("nothing else is told")
            };
            sender.send(exhausted).expect("the test listens");
        }));
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
