//! Who logged in: the tokens that this member takes, each for a user.
//!
//! Logging in goes through the log, so that every member learns of every token; but how long one is good each member
//! measures itself, from its last use there, and a member that starts anew, or is sent a snapshot, knows none that was
//! given out before. All as in etcd; its clients log in again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use kvorum_mvcc::AuthChange;

/// Most tokens at one time; beyond that new ones are not taken until some expired.
const TOKENS_MAX: usize = 262_144;
/// So many are never looked through for expired ones.
const TOKENS_FEW: usize = 1024;

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Tokens(Arc<Shared>);

struct Shared {
    /// How long one is good after its last use.
    ttl: Duration,
    table: Mutex<Table>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens")
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Table {
    held: HashMap<String, Held>,
    /// At so many it is looked through.
    sweep_at: usize,
}

struct Held {
    user: Arc<str>,
    expires: Instant,
}

impl Tokens {
    /// None yet.
    pub fn new(ttl: Duration) -> Self {
        Tokens(Arc::new(Shared {
            ttl,
            table: Mutex::default(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().expect("no holder of the lock panics")
    }

    /// Takes over what applied entries did, before their callers hear of it.
    pub fn note(&self, changes: Vec<AuthChange>) {
        for change in changes {
            match change {
                AuthChange::Token { token, user } => {
                    let token = String::from_utf8(token.0.into());
                    self.grant(token.unwrap_or_default(), &user, Instant::now());
                }
                AuthChange::UserTokensEnd(user) => self.lock().held.retain(|_, held| *held.user != *user),
                AuthChange::AllTokensEnd => self.clear(),
            }
        }
    }

    /// Forgets all: who the users are now is not what it was.
    pub fn clear(&self) {
        *self.lock() = Table::default();
    }

    fn grant(&self, token: String, user: &str, now: Instant) {
        let mut table = self.lock();
        if table.held.len() >= table.sweep_at.max(TOKENS_FEW) {
            table.held.retain(|_, held| held.expires > now);
            table.sweep_at = 2 * table.held.len();
        }
        if table.held.len() < TOKENS_MAX {
            let (user, expires) = (user.into(), now + self.0.ttl);
            table.held.insert(token, Held { user, expires });
        }
    }

    /// Whose a token is; it is good for the whole time again.
    pub fn user(&self, token: &str) -> Option<Arc<str>> {
        self.user_at(token, Instant::now())
    }

    fn user_at(&self, token: &str, now: Instant) -> Option<Arc<str>> {
        let mut table = self.lock();
        let held = table.held.get_mut(token)?;
        if held.expires <= now {
            table.held.remove(token);
            return None;
        }
        held.expires = now + self.0.ttl;
        Some(held.user.clone())
    }
}

/// The index of the entry that gave a token out, as its end says.
pub(crate) fn index_of(token: &str) -> Option<u64> {
    let (prefix, index) = token.split_once('.')?;
    let is_plain = !prefix.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
    index.parse().ok().filter(|_| is_plain)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use kvorum_model::Secret;

    use super::*;

    fn granted(token: &'static str, user: &str) -> AuthChange {
        AuthChange::Token {
            token: Secret(token.as_bytes().into()),
            user: user.to_owned(),
        }
    }

    #[test]
    fn a_token_is_good_for_its_time_after_each_use() {
        let tokens = Tokens::new(Duration::from_secs(300));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        tokens.grant("a.1".to_owned(), "me", start);
        assert_eq!(tokens.user_at("a.1", at(299)).as_deref(), Some("me"));
        assert_eq!(tokens.user_at("a.1", at(598)).as_deref(), Some("me"));
        assert_eq!(tokens.user_at("a.1", at(898)), None);
        assert_eq!(tokens.user_at("a.1", at(1)), None, "it is gone");
        assert_eq!(tokens.user_at("b.1", start), None);
    }

    #[test]
    fn tokens_end_with_their_user_and_with_authentication() {
        let tokens = Tokens::new(Duration::from_secs(300));
        let known = || ["a.1", "b.2", "c.3"].map(|token| tokens.user(token).is_some());
        tokens.note(vec![
            granted("a.1", "me"),
            granted("b.2", "you"),
            granted("c.3", "me"),
        ]);
        assert_eq!(known(), [true, true, true]);
        tokens.note(vec![AuthChange::UserTokensEnd("me".to_owned())]);
        assert_eq!(known(), [false, true, false]);
        tokens.note(vec![AuthChange::AllTokensEnd]);
        assert_eq!(known(), [false, false, false]);
    }

    #[test]
    fn expired_tokens_do_not_pile_up() {
        let tokens = Tokens::new(Duration::from_secs(1));
        let start = Instant::now();
        for number in 0..10 * TOKENS_FEW as u64 {
            tokens.grant(
                format!("t.{number}"),
                "me",
                start + Duration::from_millis(2 * number),
            );
            assert!(tokens.lock().held.len() <= 2 * TOKENS_FEW);
        }
    }

    #[test]
    fn where_a_token_comes_from() {
        assert_eq!(index_of("abc.17"), Some(17));
        for bad in [
            "",
            "abc",
            ".17",
            "abc.",
            "abc.1.2",
            "abc.+1",
            "abc.x",
            "abc.99999999999999999999",
        ] {
            assert_eq!(index_of(bad), None, "{bad}");
        }
    }
}
