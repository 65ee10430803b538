//! `backup_label`: where a base backup's WAL begins. Lines of `NAME: value`, written by Postgres.

use model::{Lsn, Tli};

/// What a backup says of its beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupLabel {
    /// Redo of the checkpoint that the backup began with: WAL is needed from here on.
    pub start: Lsn,
    /// Where that checkpoint's record begins.
    pub checkpoint: Lsn,
    /// The Postgres timeline.
    pub tli: Tli,
    /// Whether it was taken from a standby.
    pub from_standby: bool,
    /// What whoever took it called it.
    pub label: String,
}

/// Why text is not a backup label that we can use.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum BackupLabelError {
    #[error("backup_label has no line {0:?}")]
    Missing(&'static str),
    #[error("backup_label line {line:?} cannot be understood")]
    Malformed { line: String },
    #[error("backup_label has an unknown line {line:?}")]
    Unknown { line: String },
    #[error("backup_label belongs to an incremental backup: only full backups can be imported")]
    Incremental,
}

impl BackupLabel {
    /// Parses the file's text.
    pub fn parse(text: &str) -> Result<BackupLabel, BackupLabelError> {
        let (mut start, mut checkpoint, mut tli, mut label) = (None, None, None, String::new());
        let mut from_standby = false;
        for line in text.lines().filter(|line| !line.is_empty()) {
            let malformed = || BackupLabelError::Malformed { line: clip(line) };
            let (name, value) = line.split_once(": ").or(line.split_once(':')).ok_or_else(malformed)?;
            match name {
                "START WAL LOCATION" => {
                    let lsn = value.split_once(" (file ").map_or(value, |(lsn, _)| lsn);
                    start = Some(lsn.parse::<Lsn>().map_err(|_| malformed())?);
                }
                "CHECKPOINT LOCATION" => checkpoint = Some(value.parse::<Lsn>().map_err(|_| malformed())?),
                "START TIMELINE" => tli = Some(Tli(value.parse().map_err(|_| malformed())?)),
                "BACKUP FROM" => from_standby = value == "standby",
                "LABEL" => value.clone_into(&mut label),
                "BACKUP METHOD" | "START TIME" => {}
                "INCREMENTAL FROM LSN" | "INCREMENTAL FROM TLI" => return Err(BackupLabelError::Incremental),
                _ => return Err(BackupLabelError::Unknown { line: clip(line) }),
            }
        }
        Ok(BackupLabel {
            start: start.ok_or(BackupLabelError::Missing("START WAL LOCATION"))?,
            checkpoint: checkpoint.ok_or(BackupLabelError::Missing("CHECKPOINT LOCATION"))?,
            tli: tli.ok_or(BackupLabelError::Missing("START TIMELINE"))?,
            from_standby,
            label,
        })
    }
}

fn clip(line: &str) -> String {
    line.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
        CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
        START TIME: 2026-11-21 12:52:10 GMT\nLABEL: pg_basebackup base backup\nSTART TIMELINE: 1\n";

    #[test]
    fn a_label_says_where_wal_begins() {
        assert_eq!(
            BackupLabel::parse(TEXT),
            Ok(BackupLabel {
                start: Lsn(0x2000028),
                checkpoint: Lsn(0x2000060),
                tli: Tli(1),
                from_standby: false,
                label: "pg_basebackup base backup".into(),
            })
        );
    }

    #[test]
    fn an_incremental_backup_is_refused() {
        let text = format!("{TEXT}INCREMENTAL FROM LSN: 0/1000028\nINCREMENTAL FROM TLI: 1\n");
        assert_eq!(BackupLabel::parse(&text), Err(BackupLabelError::Incremental));
    }

    #[test]
    fn a_label_without_its_start_or_with_unknown_lines_is_refused() {
        assert_eq!(BackupLabel::parse(""), Err(BackupLabelError::Missing("START WAL LOCATION")));
        assert!(BackupLabel::parse(&format!("{TEXT}PHASE OF MOON: full\n")).is_err());
        assert!(BackupLabel::parse(&TEXT.replace("0/2000028", "0/x")).is_err());
    }
}
