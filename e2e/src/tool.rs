//! Programs that are run to their end.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use testkit::account;

/// A program of the cache that scripts fill, by its path there; else the one of that name on the `PATH`.
pub fn find(in_cache: &str) -> Result<PathBuf> {
    let cached = account::cache_dir()?.join(in_cache);
    if cached.is_file() {
        return Ok(cached);
    }
    let name = Path::new(in_cache).file_name().context("a program has a name")?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file());
    found.with_context(|| format!("there is no {} in the cache or on the PATH: run make e2e", name.display()))
}

/// Runs `command`, feeds it `input`, and gives what it printed. Its complaints are part of the error when it fails.
pub fn run(command: &mut Command, input: Option<&str>) -> Result<Vec<u8>> {
    let shown = shown(command);
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    if let (Some(input), Some(mut pipe)) = (input, child.stdin.take()) {
        // One that ends before it has read everything says why itself.
        pipe.write_all(input.as_bytes()).ok();
    }
    let output = child.wait_with_output().with_context(|| format!("{shown} broke off"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{shown}: {}\n{}", output.status, complaint.trim());
    }
    Ok(output.stdout)
}

/// As [`run`], for programs that print text.
pub fn text(command: &mut Command, input: Option<&str>) -> Result<String> {
    Ok(String::from_utf8(run(command, input)?).context("it printed no text")?.trim_end().to_owned())
}

fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_prints_is_given_and_what_it_complains_about_is_told() {
        assert_eq!(text(Command::new("cat").arg("-"), Some("one\ntwo\n")).unwrap(), "one\ntwo");
        let error = text(Command::new("sh").args(["-c", "echo no such luck >&2; exit 3"]), None).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("no such luck") && error.contains('3') && error.starts_with("sh -c"),
            "{error}"
        );
    }
}
