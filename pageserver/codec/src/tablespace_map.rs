//! `tablespace_map`: which tablespaces a base backup has and where they lay. One line each, `oid path`; a backslash escapes a line
//! break or a backslash in the path.

/// One tablespace of a base backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedTablespace {
    /// Its oid.
    pub oid: u32,
    /// Its directory on the source.
    pub path: String,
}

/// A line that is not `oid path`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("tablespace_map line {line} is not an oid and a path")]
pub struct TablespaceMapError {
    /// 1-based.
    pub line: usize,
}

/// Parses the file's text.
pub fn parse(text: &str) -> Result<Vec<MappedTablespace>, TablespaceMapError> {
    let mut found = Vec::new();
    let mut line = String::new();
    let mut chars = text.chars();
    loop {
        let next = chars.next();
        match next {
            Some('\\') => line.extend(chars.next()),
            Some('\n' | '\r') | None => {
                if !line.is_empty() {
                    let error = TablespaceMapError { line: found.len() + 1 };
                    let (oid, path) =
                        line.split_once(' ').filter(|(_, path)| !path.is_empty()).ok_or(error)?;
                    let oid = oid.parse().map_err(|_| TablespaceMapError { line: found.len() + 1 })?;
                    found.push(MappedTablespace { oid, path: path.into() });
                    line.clear();
                }
                if next.is_none() {
                    return Ok(found);
                }
            }
            Some(other) => line.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_keep_their_blanks_and_escaped_characters() {
        let text = "16384 /srv/fast disk\n16385 /srv/odd\\\nname\\\\x\n";
        let expected = [(16384, "/srv/fast disk"), (16385, "/srv/odd\nname\\x")];
        let expected = expected.map(|(oid, path)| MappedTablespace { oid, path: path.into() });
        assert_eq!(parse(text), Ok(expected.to_vec()));
        assert_eq!(parse(""), Ok(vec![]));
    }

    #[test]
    fn a_line_without_a_path_is_refused() {
        assert_eq!(parse("1 /a\n16384\n"), Err(TablespaceMapError { line: 2 }));
        assert_eq!(parse("x /a\n"), Err(TablespaceMapError { line: 1 }));
    }
}
