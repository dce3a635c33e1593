//! Passwords: hashed by the member that takes the request, before anything goes into the log; compared on threads that
//! may block, few at one time, so that those who try passwords do not starve the others.

use std::sync::{Arc, OnceLock};

use kvorum_model::Secret;
use kvorum_proto::Outcome;
use tokio::sync::Semaphore;
use tonic::Status;

use super::reads::blocking;

/// The cheapest hash that bcrypt knows, as the logarithm of its rounds.
pub const BCRYPT_COST_MIN: u32 = 4;
/// The most expensive one.
pub const BCRYPT_COST_MAX: u32 = 31;
/// What etcd takes by default.
pub const BCRYPT_COST: u32 = 10;
/// bcrypt looks at no more bytes of a password: a longer one would be as good as its beginning.
const PASSWORD_BYTES_MAX: usize = 72;
/// Hashes in work at one time. One keeps a core busy for some 50 ms at the default cost.
const HASHES_AT_ONCE: usize = 2;

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Passwords {
    cost: u32,
    places: Arc<Semaphore>,
    /// A hash that no password has been asked for: who names a user that is not there waits as long as the others.
    nobodys: Arc<OnceLock<String>>,
}

impl Passwords {
    /// With hashes of this cost.
    pub fn new(cost: u32) -> Self {
        Passwords {
            cost: cost.clamp(BCRYPT_COST_MIN, BCRYPT_COST_MAX),
            places: Arc::new(Semaphore::new(HASHES_AT_ONCE)),
            nobodys: Arc::default(),
        }
    }

    async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
        let place = self.places.clone().acquire_owned().await;
        let place = place.expect("the semaphore is never closed");
        blocking(move || {
            // Until it is done, even if nobody waits for it any more.
            let _place = place;
            work()
        })
        .await
    }

    /// The hash of a password, with a salt of its own.
    pub async fn hash(&self, password: String) -> Result<Secret, Status> {
        if password.len() > PASSWORD_BYTES_MAX {
            let text = format!("kvorum: a password has at most {PASSWORD_BYTES_MAX} bytes");
            return Err(Outcome::NotApplied.mark(Status::invalid_argument(text)));
        }
        let cost = self.cost;
        let hashed = self.work(move || bcrypt::hash(password, cost)).await?;
        let failed = |error| {
            let text = format!("kvorum: the password cannot be hashed: {error}");
            Outcome::NotApplied.mark(Status::internal(text))
        };
        Ok(Secret(hashed.map_err(failed)?.into()))
    }

    /// Whether a password is the one behind a hash; `None` stands for a user that is not there. Takes as long whatever
    /// the answer.
    pub async fn fits(&self, password: String, hash: Option<Secret>) -> Result<bool, Status> {
        let (cost, nobodys) = (self.cost, self.nobodys.clone());
        self.work(move || match hash {
            Some(hash) => {
                let is_whole = password.len() <= PASSWORD_BYTES_MAX;
                let hash = std::str::from_utf8(&hash.0);
                let fits = hash.is_ok_and(|hash| bcrypt::verify(password, hash).unwrap_or(false));
                fits && is_whole
            }
            None => {
                let hash = nobodys.get_or_init(|| bcrypt::hash("", cost).unwrap_or_default());
                let _ = bcrypt::verify(password, hash);
                false
            }
        })
        .await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn passwords_fit_their_hashes_and_no_others() {
        let passwords = Passwords::new(0);
        let fits = async |password: &str, hash: &Secret| {
            passwords
                .fits(password.to_owned(), Some(hash.clone()))
                .await
                .unwrap()
        };
        let longest = "x".repeat(PASSWORD_BYTES_MAX);
        for password in ["secret", "", "p\0q", &longest] {
            let hash = passwords.hash(password.to_owned()).await.unwrap();
            assert!(fits(password, &hash).await, "{password:?}");
            assert!(!fits("other", &hash).await);
            assert!(!fits(&format!("{password}x"), &hash).await, "nothing is cut off");
            let again = passwords.hash(password.to_owned()).await.unwrap();
            assert_ne!(hash, again, "the salt is another");
        }
        let too_long = passwords.hash("x".repeat(PASSWORD_BYTES_MAX + 1)).await;
        assert_eq!(too_long.unwrap_err().code(), tonic::Code::InvalidArgument);
        assert!(!passwords.fits(String::new(), None).await.unwrap());
        for bad in ["", "nonsense", "$2a$10$short"] {
            assert!(!fits("", &Secret(bad.into())).await);
        }
    }

    /// Made by Go's `bcrypt.GenerateFromPassword`, as etcd stores them.
    #[tokio::test]
    async fn etcds_hashes_are_understood() {
        let hash = Secret("$2a$10$XajjQvNhvvRt5GSeFk1xFeyqRrsxkhBkUiQeg0dt.wU1qD4aFDcga".into());
        let passwords = Passwords::new(0);
        let fits = async |password: &str| passwords.fits(password.to_owned(), Some(hash.clone())).await;
        assert!(fits("allmine").await.unwrap());
        assert!(!fits("allyours").await.unwrap());
    }
}
