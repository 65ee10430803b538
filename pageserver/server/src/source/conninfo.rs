//! Connection strings in both of libpq's forms, `host=… user=…` and `postgresql://…`, as far as replication needs them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use model::TimelineId;

use super::secure::{Security, SslMode};

/// Where a Postgres is and as whom to connect.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnInfo {
    /// Tried in order.
    pub places: Vec<Place>,
    /// The role.
    pub user: String,
    /// Secret: neither shown nor stored.
    pub password: Option<String>,
    /// For ordinary connections; replication needs none.
    pub dbname: String,
    /// How the source shows us.
    pub application_name: Option<String>,
    /// File of passwords, in `.pgpass` form.
    pub passfile: Option<PathBuf>,
    /// Name of a file of [`Secrets::directory`] that holds the password.
    pub credentials: Option<String>,
    /// That file.
    credentials_file: Option<PathBuf>,
    /// The slot that was chosen for the timeline that follows.
    slot: Option<String>,
    /// TLS, with what the process has where the string says nothing.
    pub security: Security,
    /// TLS as the string says it.
    stored_security: Security,
    /// For each place.
    pub connect_timeout: Duration,
}

/// Where passwords of sources are found that no connection string should hold.
#[derive(Clone, Debug, Default)]
pub struct Secrets {
    /// A file in the form of Postgres' `.pgpass`; empty for none.
    pub passfile: PathBuf,
    /// A directory of files that hold a password each, such as a Secret that is mounted; empty for none. `ca.crt`, `tls.crt` and `tls.key` in it
    /// are the roots of sources, and our own certificate and key.
    pub directory: PathBuf,
}

/// One address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name or address, or the directory of a Unix socket when it begins with `/`.
    pub host: String,
    /// TCP port, or the number in the socket's name.
    pub port: u16,
}

/// A text that is no connection string, or asks for what is not offered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid connection string: {0}")]
pub struct ConnInfoError(String);

fn wrong<T>(reason: impl Into<String>) -> Result<T, ConnInfoError> {
    Err(ConnInfoError(reason.into()))
}

/// Options of libpq that change nothing here.
const IGNORED: [&str; 12] = [
    "client_encoding",
    "fallback_application_name",
    "gssencmode",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "load_balance_hosts",
    "replication",
    "target_session_attrs",
    "tcp_user_timeout",
    "channel_binding",
];

impl FromStr for ConnInfo {
    type Err = ConnInfoError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let uri = ["postgresql://", "postgres://"].iter().find_map(|scheme| text.strip_prefix(scheme));
        let mut options = match uri {
            Some(rest) => uri_options(rest)?,
            None => keyword_options(text)?,
        };
        let mut take = |name: &str| options.remove(name).filter(|value| !value.is_empty());

        let hosts = take("hostaddr").or(take("host"));
        let hosts = hosts
            .as_deref()
            .unwrap_or("localhost")
            .split(',')
            .map(str::trim)
            .map(|host| if host.is_empty() { "localhost" } else { host });
        let ports = take("port").unwrap_or_else(|| "5432".into());
        let ports = ports
            .split(',')
            .map(|port| port.trim().parse().map_err(|_| ConnInfoError(format!("{port:?} is not a port"))))
            .collect::<Result<Vec<u16>, _>>()?;
        let hosts: Vec<&str> = hosts.collect();
        if ports.len() != 1 && ports.len() != hosts.len() {
            return wrong(format!("{} ports for {} hosts", ports.len(), hosts.len()));
        }
        let places = hosts
            .iter()
            .enumerate()
            .map(|(index, host)| Place { host: (*host).into(), port: *ports.get(index).unwrap_or(&ports[0]) })
            .collect();

        let security = Security {
            mode: take("sslmode")
                .map_or(Ok(SslMode::default()), |mode| mode.parse())
                .map_err(ConnInfoError)?,
            roots: take("sslrootcert").map(PathBuf::from),
            certificate: take("sslcert").map(PathBuf::from),
            key: take("sslkey").map(PathBuf::from),
        };
        let connect_timeout = match take("connect_timeout") {
            None => Duration::from_secs(10),
            Some(text) => match text.parse() {
                Ok(seconds @ 1..=3600) => Duration::from_secs(seconds),
                _ => return wrong(format!("connect_timeout is {text:?}, expected 1 to 3600 seconds")),
            },
        };
        let user = take("user").unwrap_or_else(|| "postgres".into());
        let info = ConnInfo {
            places,
            password: take("password"),
            dbname: take("dbname").unwrap_or_else(|| "postgres".into()),
            application_name: take("application_name"),
            passfile: take("passfile").map(PathBuf::from),
            credentials: take("credentials").map(checked_key).transpose()?,
            credentials_file: None,
            slot: take("slot").map(checked_slot).transpose()?,
            stored_security: security.clone(),
            security,
            user,
            connect_timeout,
        };
        match options.keys().find(|name| !IGNORED.contains(&name.as_str())) {
            Some(name) => wrong(format!("option {name:?} is not known here")),
            None => Ok(info),
        }
    }
}

/// A key of a Secret: a name without a path.
fn checked_key(key: String) -> Result<String, ConnInfoError> {
    let is_key = key.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) && !key.starts_with('.');
    if is_key { Ok(key) } else { wrong(format!("credentials={key:?} is no key of a Secret")) }
}

/// What Postgres takes for the name of a replication slot.
fn checked_slot(name: String) -> Result<String, ConnInfoError> {
    let is_name =
        name.len() <= 63 && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if is_name { Ok(name) } else { wrong(format!("slot={name:?} is no name of a replication slot")) }
}

/// `name = value` pairs; values may stand in single quotes, in which `\` escapes.
fn keyword_options(text: &str) -> Result<BTreeMap<String, String>, ConnInfoError> {
    let mut options = BTreeMap::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let Some((name, after)) = rest.split_once('=') else {
            return wrong("expected name=value pairs");
        };
        let name = name.trim();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return wrong("expected name=value pairs");
        }
        let after = after.trim_start();
        let (quoted, body) = after.strip_prefix('\'').map_or((false, after), |body| (true, body));
        let mut value = String::new();
        let mut characters = body.char_indices();
        let mut ended = !quoted;
        let mut used = body.len();
        while let Some((at, character)) = characters.next() {
            match character {
                '\\' => match characters.next() {
                    Some((_, escaped)) => value.push(escaped),
                    None => return wrong(format!("value of {name:?} ends in a backslash")),
                },
                '\'' if quoted => {
                    (ended, used) = (true, at + 1);
                    break;
                }
                space if !quoted && space.is_whitespace() => {
                    used = at;
                    break;
                }
                character => value.push(character),
            }
        }
        if !ended {
            return wrong(format!("value of {name:?} has no closing quote"));
        }
        options.insert(name.to_owned(), value);
        rest = body[used..].trim_start();
    }
    Ok(options)
}

/// `[user[:password]@][host[:port],…][/dbname][?name=value&…]`, each part percent-encoded.
fn uri_options(rest: &str) -> Result<BTreeMap<String, String>, ConnInfoError> {
    let mut options = BTreeMap::new();
    let mut set = |name: &str, text: &str| match percent_decoded(text) {
        Some(value) => {
            options.insert(name.to_owned(), value);
            Ok(())
        }
        None => wrong(format!("the percent encoding of {name} is malformed")),
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, dbname) = rest.split_once('/').unwrap_or((rest, ""));
    set("dbname", dbname)?;
    let (credentials, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    set("user", user)?;
    set("password", password)?;
    let mut names = Vec::new();
    let mut ports = Vec::new();
    for place in hosts.split(',') {
        // An IPv6 address stands in brackets, as it has colons of its own.
        let (host, port) = match place.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':').unwrap_or("")),
            None => place.rsplit_once(':').unwrap_or((place, "")),
        };
        names.push(host);
        ports.push(if port.is_empty() { "5432" } else { port });
    }
    if !hosts.is_empty() {
        set("host", &names.join(","))?;
        set("port", &ports.join(","))?;
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let Some((name, value)) = pair.split_once('=') else {
            return wrong("expected name=value pairs after '?'");
        };
        set(name, value)?;
    }
    Ok(options)
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        if *byte == b'%' {
            let (digits, after) = after.split_at_checked(2)?;
            bytes.push(*hex::decode(digits).ok()?.first()?);
            rest = after;
        } else {
            bytes.push(*byte);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

impl ConnInfo {
    /// The password for one place: from the file that the string names, the string, the environment's `PGPASSWORD`, or a password file. Read anew
    /// for each connection, so that a changed one is used at once.
    pub fn password_for(&self, place: &Place, environment: Option<&str>) -> Option<String> {
        if let Some(file) = &self.credentials_file {
            return match std::fs::read_to_string(file) {
                Ok(password) => Some(password.trim_end_matches(['\r', '\n']).to_owned()),
                Err(error) => {
                    tracing::warn!(file = %file.display(), "cannot read the source's password: {error}");
                    None
                }
            };
        }
        self.password.clone().or_else(|| environment.map(str::to_owned)).or_else(|| {
            let file = std::fs::read_to_string(self.passfile.as_deref()?).ok()?;
            let host = if place.host.starts_with('/') { "localhost" } else { &place.host };
            passfile_entry(&file, [host, &place.port.to_string(), "replication", &self.user])
        })
    }

    /// The name of a timeline's slot on this source.
    pub fn slot_of(&self, timeline: TimelineId) -> String {
        self.slot.clone().unwrap_or_else(|| format!("palimpsest_{timeline}"))
    }

    /// Whether that name was chosen, so that others may use it, too.
    pub fn has_chosen_slot(&self) -> bool {
        self.slot.is_some()
    }

    /// For another timeline of the same source: one slot is for one.
    #[must_use]
    pub fn without_slot(self) -> Self {
        ConnInfo { slot: None, ..self }
    }

    /// How the source is to show the connections of a timeline, unless the string says it.
    #[must_use]
    pub fn shown_as(mut self, timeline: TimelineId) -> Self {
        self.application_name.get_or_insert_with(|| format!("palimpsest_{timeline}"));
        self
    }

    /// What is to be done when a source wants a password and there is none.
    pub fn no_password(&self) -> String {
        match &self.credentials {
            Some(key) => format!(
                "the source wants a password, and there is no key {key} to be read among the mounted credentials"
            ),
            None => "the source wants a password, and none is given".into(),
        }
    }

    /// The same with places to find passwords in, unless the string names its own.
    #[must_use]
    pub fn or_secrets(mut self, secrets: &Secrets) -> Self {
        if self.passfile.is_none() && !secrets.passfile.as_os_str().is_empty() {
            self.passfile = Some(secrets.passfile.clone());
        }
        if !secrets.directory.as_os_str().is_empty() {
            let given = |name: &str| Some(secrets.directory.join(name)).filter(|file| file.exists());
            if self.security.roots.is_none() {
                self.security.roots = given("ca.crt");
            }
            // One for a password is no one for a certificate.
            if self.security.certificate.is_none()
                && self.security.key.is_none()
                && self.credentials.is_none()
            {
                (self.security.certificate, self.security.key) =
                    given("tls.crt").zip(given("tls.key")).map_or((None, None), |(c, k)| (Some(c), Some(k)));
            }
        }
        self.credentials_file = self.credentials.as_deref().map(|key| secrets.directory.join(key));
        self
    }
}

/// The password of the first line `host:port:database:user:password` that matches; `*` matches anything, `\` escapes.
fn passfile_entry(file: &str, wanted: [&str; 4]) -> Option<String> {
    file.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut fields = vec![String::new()];
        let mut characters = line.chars();
        while let Some(character) = characters.next() {
            let count = fields.len();
            let field = fields.last_mut().expect("starts with one field");
            match character {
                '\\' => field.extend(characters.next()),
                // The password may have colons.
                ':' if count < 5 => fields.push(String::new()),
                character => field.push(character),
            }
        }
        let [host, port, database, user, password] = <[String; 5]>::try_from(fields).ok()?;
        let matches = [host, port, database, user]
            .iter()
            .zip(wanted)
            .all(|(pattern, value)| pattern == "*" || pattern == value);
        matches.then_some(password)
    })
}

/// A value as it stands in the key=value form.
pub fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// In keyword form and without the password: what may be stored and logged.
impl fmt::Display for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |of: fn(&Place) -> String| self.places.iter().map(of).collect::<Vec<_>>().join(",");
        write!(f, "host={}", quoted(&list(|place| place.host.clone())))?;
        write!(f, " port={}", list(|place| place.port.to_string()))?;
        write!(f, " user={} dbname={}", quoted(&self.user), quoted(&self.dbname))?;
        if let Some(name) = &self.application_name {
            write!(f, " application_name={}", quoted(name))?;
        }
        if let Some(passfile) = &self.passfile {
            write!(f, " passfile={}", quoted(&passfile.to_string_lossy()))?;
        }
        let Security { mode, roots, certificate, key } = &self.stored_security;
        if *mode != SslMode::default() {
            write!(f, " sslmode={mode}")?;
        }
        for (name, file) in [("sslrootcert", roots), ("sslcert", certificate), ("sslkey", key)] {
            if let Some(file) = file {
                write!(f, " {name}={}", quoted(&file.to_string_lossy()))?;
            }
        }
        if let Some(key) = &self.credentials {
            write!(f, " credentials={}", quoted(key))?;
        }
        if let Some(slot) = &self.slot {
            write!(f, " slot={slot}")?;
        }
        write!(f, " connect_timeout={}", self.connect_timeout.as_secs())
    }
}

impl fmt::Debug for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> ConnInfo {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn tls_is_as_the_string_says_and_else_as_the_process_has_it() {
        let home = tempfile::tempdir().unwrap();
        let secrets = Secrets { directory: home.path().into(), ..Secrets::default() };
        let at = |name: &str| Some(home.path().join(name));
        for name in ["ca.crt", "tls.crt", "tls.key"] {
            std::fs::write(home.path().join(name), "").unwrap();
        }
        let info = parsed("host=h sslmode=verify-full").or_secrets(&secrets);
        assert_eq!((&info.security.roots, &info.security.certificate), (&at("ca.crt"), &at("tls.crt")));
        assert!(info.to_string().contains("sslmode=verify-full") && !info.to_string().contains("ca.crt"));
        let own = parsed("host=h sslmode=require sslrootcert=r sslcert=c sslkey=k").or_secrets(&secrets);
        assert_eq!(own.security.roots, Some("r".into()));
        assert_eq!(parsed(&own.to_string()).security, own.security);
        assert_eq!(parsed("host=h credentials=orders").or_secrets(&secrets).security.certificate, None);
        assert_eq!(parsed("host=h").security.mode, SslMode::Prefer);
    }

    #[test]
    fn a_key_names_a_file_of_the_directory_and_nothing_beyond_it() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("orders-db"), "s3cret\n").unwrap();
        let secrets = Secrets { directory: home.path().into(), ..Secrets::default() };
        let info = parsed("host=h credentials=orders-db").or_secrets(&secrets);
        assert_eq!(info.password_for(&info.places[0], Some("other")).as_deref(), Some("s3cret"));
        assert_eq!(parsed(&info.to_string()).credentials.as_deref(), Some("orders-db"));
        assert!(!info.to_string().contains("s3cret"));
        for bad in ["../orders-db", "a/b", ".hidden", "a b"] {
            assert!(format!("host=h credentials='{bad}'").parse::<ConnInfo>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_slot_may_be_chosen_for_one_timeline_and_is_not_anothers() {
        let timeline: TimelineId = "ffeeddccbbaa99887766554433221100".parse().unwrap();
        let chosen = parsed("host=h slot=backups");
        assert_eq!(parsed(&chosen.to_string()).slot_of(timeline), "backups");
        let own = format!("palimpsest_{timeline}");
        assert_eq!(chosen.without_slot().slot_of(timeline), own);
        assert_eq!(parsed("host=h").shown_as(timeline).application_name, Some(own));
        assert_eq!(parsed("host=h application_name=x").shown_as(timeline).application_name, Some("x".into()));
        for bad in ["Backups", "a-b", "a b", &"a".repeat(64)] {
            assert!(format!("host=h slot='{bad}'").parse::<ConnInfo>().is_err(), "{bad}");
        }
    }

    #[test]
    fn both_forms_mean_the_same() {
        let keywords = parsed(r"host=db.example port = 5433 user='re\'pl' password='a b\\c' dbname=x");
        let uri = parsed("postgresql://re%27pl:a%20b%5Cc@db.example:5433/x?connect_timeout=10");
        assert_eq!(keywords, uri);
        assert_eq!(keywords.password.as_deref(), Some(r"a b\c"));
        assert_eq!(keywords.places, [Place { host: "db.example".into(), port: 5433 }]);
    }

    #[test]
    fn what_is_shown_has_no_password_and_reads_back_as_the_rest() {
        let info = parsed("postgres://me:secret@[::1]:5433,/other/?application_name=p&passfile=%2Fx%20y");
        let shown = format!("{info} {info:?}");
        assert!(!shown.contains("secret"), "{shown}");
        assert_eq!(parsed(&info.to_string()), ConnInfo { password: None, ..info });
        let socket = parsed("host=/var/run/postgresql");
        assert_eq!(socket.places[0], Place { host: "/var/run/postgresql".into(), port: 5432 });
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        for bad in [
            "host",
            "=x",
            "host='a",
            "host=a\\",
            "port=70000",
            "host=a,b,c port=1,2",
            "sslmode=always",
            "hots=x",
            "connect_timeout=soon",
            "postgres://a%2",
            "postgres://a/b?c",
        ] {
            assert!(bad.parse::<ConnInfo>().is_err(), "{bad:?} was accepted");
        }
        for bytes in crate::libpq::garbage::any_bytes(500) {
            let _ = String::from_utf8_lossy(&bytes).parse::<ConnInfo>();
        }
    }

    #[test]
    fn passwords_come_from_the_string_then_the_environment_then_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let passfile = directory.path().join("pass");
        std::fs::write(&passfile, "# no\nother:*:*:*:wrong\nh:5432:*:me:f\\:i:le\n*:*:*:*:last\n").unwrap();
        let secrets = Secrets { passfile, ..Secrets::default() };
        let info = parsed("host=h user=me").or_secrets(&secrets);
        let place = &info.places[0];
        assert_eq!(info.password_for(place, Some("env")).as_deref(), Some("env"));
        assert_eq!(info.password_for(place, None).as_deref(), Some("f:i:le"));
        let socket = parsed("host=/tmp user=me").or_secrets(&secrets);
        assert_eq!(socket.password_for(&socket.places[0], None).as_deref(), Some("last"));
        assert_eq!(parsed("password=s").password_for(place, Some("env")).as_deref(), Some("s"));
    }
}
