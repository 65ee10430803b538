//! An error in one line.

/// An error and all that caused it, separated by `: `. For logs and messages; whoever can act on a cause matches it instead.
pub fn error_story(error: &dyn std::error::Error) -> String {
    let mut story = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        story.push_str(": ");
        story.push_str(&cause.to_string());
        source = cause.source();
    }
    story
}
