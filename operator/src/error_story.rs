//! An error with its causes, in one line.

use std::error::Error;
use std::fmt::Write as _;

/// What happened, and why, and why that.
pub fn story(error: &dyn Error) -> String {
    let mut story = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !story.ends_with(&cause_text) {
            let _ = write!(story, ": {cause_text}");
        }
        source = cause.source();
    }
    story
}
