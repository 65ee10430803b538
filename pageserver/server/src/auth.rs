//! Who may read what: tokens of clients.
//!
//! A token is a JWT signed with Ed25519 (`alg` is `EdDSA`; no other is looked at), as Neon's control plane makes them: `scope` is `tenant`, with
//! the one tenant in `tenant_id` that it opens, or `pageserverapi`, which opens everything. `exp` and `nbf` count where they stand.
//!
//! Verified by hand with ring's Ed25519, which is here anyway: a JWT library brings RSA and three curves along for the one algorithm.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use model::TenantId;
use ring::signature::{ED25519, UnparsedPublicKey};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

/// Longest token looked at.
const LONGEST_TOKEN: usize = 8 << 10;
/// Most keys that a directory may hold.
const MOST_KEYS: usize = 64;
/// How far clocks may differ.
const LEEWAY: Duration = Duration::from_mins(1);
/// What stands before the 32 bytes of an Ed25519 key in its `SubjectPublicKeyInfo` (RFC 8410 §4).
const SPKI_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// What a client may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    Everything,
    /// Whatever is of this tenant.
    Tenant(TenantId),
}

impl Access {
    /// Whether it opens a tenant.
    pub fn opens(self, tenant: TenantId) -> bool {
        self == Access::Everything || self == Access::Tenant(tenant)
    }
}

/// Why a token opens nothing. For the log; a client hears only that it does not.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum TokenError {
    #[error("it is no JWT")]
    Malformed,
    #[error("its algorithm is {0:?}, not EdDSA")]
    Algorithm(String),
    #[error("no key has signed it")]
    Signature,
    #[error("it has expired, or is not valid yet")]
    Time,
    #[error("its scope is {0:?}, which opens nothing here")]
    Scope(String),
    #[error("its scope is tenant, without a tenant_id")]
    NoTenant,
}

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file or the directory cannot be read.
    #[error("cannot read {path}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is no key.
    #[error("{0} is no Ed25519 public key in PEM form")]
    NotAKey(PathBuf),
    /// There are none, or too many.
    #[error("{path} holds {count} keys, expected 1 to {MOST_KEYS}")]
    Count {
        /// Where.
        path: PathBuf,
        /// How many.
        count: usize,
    },
}

#[derive(Deserialize)]
struct Header {
    alg: String,
}

#[derive(Deserialize)]
struct Claims {
    scope: String,
    tenant_id: Option<String>,
    exp: Option<f64>,
    nbf: Option<f64>,
}

type Key = [u8; 32];

/// The keys that tokens are verified with. Cheap to clone.
#[derive(Clone)]
pub struct Keys {
    path: Arc<Path>,
    // Guards the list; held to copy it or to replace it.
    keys: Arc<RwLock<Arc<[Key]>>>,
}

impl Keys {
    /// Of a PEM file, or of all files of a directory: a token needs one key that fits.
    pub fn read(path: &Path) -> Result<Keys, KeysError> {
        let keys = read_keys(path)?;
        Ok(Keys { path: path.into(), keys: Arc::new(RwLock::new(keys.into())) })
    }

    /// Reads them again so often. Ones that cannot be used change nothing.
    pub async fn keep(
        self,
        every: Duration,
        stop: CancellationToken,
    ) -> Result<(), std::convert::Infallible> {
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = stop.cancelled() => return Ok(()),
            }
            match read_keys(&self.path) {
                Ok(keys) if keys[..] == self.current()[..] => {}
                Ok(keys) => {
                    tracing::info!(count = keys.len(), "the keys of tokens changed");
                    *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys.into();
                }
                Err(error) => tracing::warn!("the keys of tokens stay as they were: {error}"),
            }
        }
    }

    /// What a token opens.
    pub fn verify(&self, token: &str) -> Result<Access, TokenError> {
        self.verify_at(token, SystemTime::now())
    }

    fn current(&self) -> Arc<[Key]> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn verify_at(&self, token: &str, now: SystemTime) -> Result<Access, TokenError> {
        if token.len() > LONGEST_TOKEN {
            return Err(TokenError::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let header: Header = decoded(header)?;
        if header.alg != "EdDSA" {
            return Err(TokenError::Algorithm(header.alg));
        }
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError::Malformed)?;
        let fits =
            |key: &Key| UnparsedPublicKey::new(&ED25519, key).verify(signed.as_bytes(), &signature).is_ok();
        if !self.current().iter().any(fits) {
            return Err(TokenError::Signature);
        }
        access_of(&decoded(claims)?, now)
    }
}

fn decoded<T: serde::de::DeserializeOwned>(part: &str) -> Result<T, TokenError> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| TokenError::Malformed)
}

fn access_of(claims: &Claims, now: SystemTime) -> Result<Access, TokenError> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let leeway = LEEWAY.as_secs_f64();
    if claims.exp.is_some_and(|exp| exp + leeway < now) || claims.nbf.is_some_and(|nbf| nbf - leeway > now) {
        return Err(TokenError::Time);
    }
    match claims.scope.as_str() {
        "pageserverapi" => Ok(Access::Everything),
        "tenant" => {
            let tenant = claims.tenant_id.as_deref().and_then(|id| id.parse().ok());
            tenant.map(Access::Tenant).ok_or(TokenError::NoTenant)
        }
        other => Err(TokenError::Scope(other.chars().take(40).collect())),
    }
}

fn read_keys(path: &Path) -> Result<Vec<Key>, KeysError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| KeysError::Unreadable { path, source }
    };
    let mut files = Vec::new();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).map_err(unreadable(path))? {
            let file = entry.map_err(unreadable(path))?.path();
            // A mounted Secret has links to files, and folders of its own whose names begin with a dot.
            let is_hidden = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            if !is_hidden && file.is_file() {
                files.push(file);
            }
        }
        files.sort();
    } else {
        files.push(path.to_owned());
    }
    if files.is_empty() || files.len() > MOST_KEYS {
        return Err(KeysError::Count { path: path.to_owned(), count: files.len() });
    }
    files.iter().map(|file| read_key(file)).collect()
}

fn read_key(file: &Path) -> Result<Key, KeysError> {
    let unreadable = |source| KeysError::Unreadable { path: file.to_owned(), source };
    let pem = std::fs::read(file).map_err(unreadable)?;
    let not_a_key = || KeysError::NotAKey(file.to_owned());
    let info = SubjectPublicKeyInfoDer::from_pem_slice(&pem).map_err(|_| not_a_key())?;
    let key = info.strip_prefix(&SPKI_HEAD[..]).ok_or_else(not_a_key)?;
    key.try_into().map_err(|_| not_a_key())
}

#[cfg(test)]
mod tests {
    use testkit::token::Signer;

    use super::*;

    const TENANT: &str = "00112233445566778899aabbccddeeff";

    fn keys(signers: &[&Signer]) -> Keys {
        let home = tempfile::tempdir().unwrap();
        for (number, signer) in signers.iter().enumerate() {
            std::fs::write(home.path().join(format!("key-{number}.pem")), signer.public_key()).unwrap();
        }
        std::fs::create_dir(home.path().join("..data")).unwrap();
        Keys::read(home.path()).unwrap()
    }

    #[test]
    fn a_token_of_any_key_opens_what_its_scope_says() {
        let (old, new) = (Signer::new(1), Signer::new(2));
        let keys = keys(&[&old, &new]);
        let tenant: TenantId = TENANT.parse().unwrap();
        for signer in [&old, &new] {
            let claims = format!(r#"{{"scope":"tenant","tenant_id":"{TENANT}","endpoint_id":""}}"#);
            assert_eq!(keys.verify(&signer.token(&claims)), Ok(Access::Tenant(tenant)));
            assert_eq!(keys.verify(&signer.token(r#"{"scope":"pageserverapi"}"#)), Ok(Access::Everything));
        }
        assert!(Access::Tenant(tenant).opens(tenant) && Access::Everything.opens(tenant));
        assert!(!Access::Tenant(tenant).opens(TenantId([7; 16])));
    }

    #[test]
    fn whatever_is_wrong_with_a_token_it_opens_nothing() {
        let (known, stranger) = (Signer::new(1), Signer::new(3));
        let keys = keys(&[&known]);
        let good = r#"{"scope":"pageserverapi"}"#;
        let cases = [
            (stranger.token(good), TokenError::Signature),
            (known.signed(r#"{"alg":"none"}"#, good), TokenError::Algorithm("none".into())),
            (known.signed(r#"{"alg":"HS256"}"#, good), TokenError::Algorithm("HS256".into())),
            (known.token(r#"{"scope":"admin"}"#), TokenError::Scope("admin".into())),
            (known.token(r#"{"scope":"tenant"}"#), TokenError::NoTenant),
            (known.token(r#"{"scope":"tenant","tenant_id":"acme"}"#), TokenError::NoTenant),
            (known.token(r#"{"scope":"pageserverapi","exp":1000}"#), TokenError::Time),
            (known.token(r#"{"scope":"pageserverapi","nbf":99999999999}"#), TokenError::Time),
            (known.token("{}"), TokenError::Malformed),
            (String::new(), TokenError::Malformed),
            ("a.b".into(), TokenError::Malformed),
            ("x".repeat(LONGEST_TOKEN + 1), TokenError::Malformed),
        ];
        for (token, expected) in cases {
            assert_eq!(keys.verify(&token), Err(expected), "{token}");
        }
        // Every bit counts.
        let whole = known.token(good);
        for at in 0..whole.len() {
            let mut changed = whole.clone().into_bytes();
            changed[at] ^= 1;
            let changed = String::from_utf8(changed).unwrap();
            // The last character of base64 has bits that decode to nothing; a decoder that is strict refuses them.
            assert!(keys.verify(&changed).is_err(), "byte {at} does not matter");
        }
    }

    #[test]
    fn a_token_is_good_until_it_expires() {
        let known = Signer::new(1);
        let keys = keys(&[&known]);
        let token = known.token(r#"{"scope":"pageserverapi","nbf":1000,"exp":2000}"#);
        let at = |seconds| keys.verify_at(&token, UNIX_EPOCH + Duration::from_secs(seconds)).is_ok();
        assert!(!at(939) && at(940) && at(2060) && !at(2061));
    }

    #[test]
    fn what_is_no_key_is_named() {
        let home = tempfile::tempdir().unwrap();
        assert!(matches!(Keys::read(home.path()), Err(KeysError::Count { count: 0, .. })));
        std::fs::write(home.path().join("key"), "no key").unwrap();
        assert!(matches!(Keys::read(home.path()), Err(KeysError::NotAKey(_))));
        assert!(matches!(Keys::read(&home.path().join("absent")), Err(KeysError::Unreadable { .. })));
    }

    #[tokio::test]
    async fn keys_that_change_count_soon_and_broken_ones_change_nothing() {
        const EVERY: Duration = Duration::from_millis(5);
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("key");
        let (old, new) = (Signer::new(1), Signer::new(2));
        std::fs::write(&file, old.public_key()).unwrap();
        let keys = Keys::read(home.path()).unwrap();
        let stop = CancellationToken::new();
        let keeper = tokio::spawn(keys.clone().keep(EVERY, stop.clone()));
        let good = r#"{"scope":"pageserverapi"}"#;
        std::fs::write(&file, "half").unwrap();
        tokio::time::sleep(EVERY * 20).await;
        assert!(keys.verify(&old.token(good)).is_ok());
        std::fs::write(&file, new.public_key()).unwrap();
        tokio::time::sleep(EVERY * 20).await;
        assert!(keys.verify(&old.token(good)).is_err() && keys.verify(&new.token(good)).is_ok());
        stop.cancel();
        let _ = keeper.await;
    }
}
