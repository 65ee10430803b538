//! The text commands.

use std::str::FromStr;

use codec::pagestream::Version;
use model::{Lsn, TenantId, TenantShardId, TimelineId};

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are named as in the syntax")]
pub enum Command {
    /// `pagestream_v2|pagestream_v3 <tenant> <timeline>`
    PageStream { version: Version, tenant: TenantId, timeline: TimelineId },
    /// `basebackup <tenant> <timeline> [<lsn>|latest] [--gzip] [--replica]`
    BaseBackup { tenant: TenantId, timeline: TimelineId, lsn: Option<Lsn>, gzip: bool, replica: bool },
    /// `fullbackup <tenant> <timeline> [<lsn> [<prev_lsn>]]`
    FullBackup { tenant: TenantId, timeline: TimelineId, lsn: Option<Lsn>, prev_lsn: Option<Lsn> },
    /// `lease lsn <tenant shard> <timeline> <lsn>`
    LeaseLsn { tenant: TenantShardId, timeline: TimelineId, lsn: Lsn },
    /// `show <name>|all`
    Show { name: String },
    /// `set …`, which drivers send and which has no effect.
    Set,
}

/// A text that is no command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The first word is not known.
    #[error("unsupported command {0:?}")]
    Unsupported(String),
    /// Its arguments are not as its syntax says.
    #[error("{command}: {reason}; expected {syntax}")]
    Arguments {
        /// Which command.
        command: &'static str,
        /// What is wrong.
        reason: String,
        /// What would be right.
        syntax: &'static str,
    },
}

const PAGESTREAM: Syntax = Syntax("pagestream", "pagestream_v2|pagestream_v3 <tenant> <timeline>");
const BASEBACKUP: Syntax =
    Syntax("basebackup", "basebackup <tenant> <timeline> [<lsn>|latest] [--gzip] [--replica]");
const FULLBACKUP: Syntax = Syntax("fullbackup", "fullbackup <tenant> <timeline> [<lsn> [<prev_lsn>]]");
const LEASE: Syntax = Syntax("lease", "lease lsn <tenant shard> <timeline> <lsn>");
const SHOW: Syntax = Syntax("show", "show <name>|all");

struct Syntax(&'static str, &'static str);

impl Syntax {
    fn error(&self, reason: &(impl ToString + ?Sized)) -> CommandError {
        CommandError::Arguments { command: self.0, reason: reason.to_string(), syntax: self.1 }
    }

    fn parse<T: FromStr<Err: ToString>>(&self, word: Option<&str>) -> Result<T, CommandError> {
        word.ok_or_else(|| self.error("too few arguments"))?
            .parse()
            .map_err(|error: T::Err| self.error(&error))
    }

    fn end<'a>(&self, mut words: impl Iterator<Item = &'a str>) -> Result<(), CommandError> {
        words.next().map_or(Ok(()), |word| Err(self.error(&format!("unexpected argument {word:?}"))))
    }
}

impl FromStr for Command {
    type Err = CommandError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim().trim_end_matches(';').trim_end();
        let unsupported = || CommandError::Unsupported(text.chars().take(100).collect());
        let (verb, arguments) = text.split_once(char::is_whitespace).ok_or_else(unsupported)?;
        let mut words = arguments.split_whitespace();
        match verb.to_ascii_lowercase().as_str() {
            verb @ ("pagestream_v2" | "pagestream_v3") => {
                let command = Command::PageStream {
                    version: if verb.ends_with('2') { Version::V2 } else { Version::V3 },
                    tenant: PAGESTREAM.parse(words.next())?,
                    timeline: PAGESTREAM.parse(words.next())?,
                };
                PAGESTREAM.end(words).map(|()| command)
            }
            "basebackup" => {
                let (tenant, timeline) = (BASEBACKUP.parse(words.next())?, BASEBACKUP.parse(words.next())?);
                let mut words = words.peekable();
                let lsn = match words.next_if(|word| !word.starts_with("--")) {
                    None => None,
                    Some(word) if word.eq_ignore_ascii_case("latest") => None,
                    Some(word) => Some(BASEBACKUP.parse(Some(word))?),
                };
                let (mut gzip, mut replica) = (false, false);
                for word in words {
                    let flag = match word {
                        "--gzip" => &mut gzip,
                        "--replica" => &mut replica,
                        _ => return Err(BASEBACKUP.error(&format!("unexpected argument {word:?}"))),
                    };
                    if std::mem::replace(flag, true) {
                        return Err(BASEBACKUP.error(&format!("{word} given twice")));
                    }
                }
                Ok(Command::BaseBackup { tenant, timeline, lsn, gzip, replica })
            }
            "fullbackup" => {
                let (tenant, timeline) = (FULLBACKUP.parse(words.next())?, FULLBACKUP.parse(words.next())?);
                let mut optional = || words.next().map(|word| FULLBACKUP.parse(Some(word))).transpose();
                let command =
                    Command::FullBackup { tenant, timeline, lsn: optional()?, prev_lsn: optional()? };
                FULLBACKUP.end(words).map(|()| command)
            }
            "lease" => {
                if !words.next().is_some_and(|word| word.eq_ignore_ascii_case("lsn")) {
                    return Err(LEASE.error("only an LSN can be leased"));
                }
                let command = Command::LeaseLsn {
                    tenant: LEASE.parse(words.next())?,
                    timeline: LEASE.parse(words.next())?,
                    lsn: LEASE.parse(words.next())?,
                };
                LEASE.end(words).map(|()| command)
            }
            "show" => {
                let name = words.next().ok_or_else(|| SHOW.error("too few arguments"))?.to_ascii_lowercase();
                SHOW.end(words).map(|()| Command::Show { name })
            }
            "set" => Ok(Command::Set),
            _ => Err(unsupported()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: &str = "00112233445566778899aabbccddeeff";
    const L: &str = "ffeeddccbbaa99887766554433221100";

    fn ids() -> (TenantId, TimelineId) {
        (T.parse().unwrap(), L.parse().unwrap())
    }

    #[test]
    fn commands_are_read_in_any_case_with_any_space() {
        let (tenant, timeline) = ids();
        assert_eq!(
            format!("  PageStream_V3\t{T}  {L} ; ").parse(),
            Ok(Command::PageStream { version: Version::V3, tenant, timeline })
        );
        assert_eq!(
            format!("fullbackup {T} {L} 0/16B5A50 0/16B5A18").parse(),
            Ok(Command::FullBackup {
                tenant,
                timeline,
                lsn: Some(Lsn(0x16B_5A50)),
                prev_lsn: Some(Lsn(0x16B_5A18))
            })
        );
        assert_eq!("SET datestyle TO 'ISO'".parse(), Ok(Command::Set));
        assert_eq!("show ALL".parse(), Ok(Command::Show { name: "all".into() }));
    }

    #[test]
    fn a_base_backup_takes_flags_after_or_instead_of_its_lsn() {
        let (tenant, timeline) = ids();
        let base = |lsn, gzip, replica| Ok(Command::BaseBackup { tenant, timeline, lsn, gzip, replica });
        assert_eq!(format!("basebackup {T} {L}").parse(), base(None, false, false));
        assert_eq!(format!("basebackup {T} {L} latest --gzip").parse(), base(None, true, false));
        assert_eq!(format!("basebackup {T} {L} --replica --gzip").parse(), base(None, true, true));
        assert_eq!(format!("basebackup {T} {L} 0/8 --replica").parse(), base(Some(Lsn(8)), false, true));
        for bad in ["--gzip --gzip", "--fast", "0/8 0/9", "here"] {
            assert!(format!("basebackup {T} {L} {bad}").parse::<Command>().is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn what_is_no_command_is_named() {
        assert_eq!("pagestream".parse::<Command>(), Err(CommandError::Unsupported("pagestream".into())));
        for bad in
            ["select 1", "pagestream_v2 x y", &format!("pagestream_v2 {T}"), "lease page 1", "show a b"]
        {
            assert!(bad.parse::<Command>().is_err(), "{bad} was accepted");
        }
        assert!(format!("pagestream_v3 {T} {L} 1").parse::<Command>().is_err());
    }
}
