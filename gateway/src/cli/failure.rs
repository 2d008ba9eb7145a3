//! How a command fails: one clear line and an exit code, whether the failure is ours or came over REST.

use std::path::Path;
use std::process::ExitCode;

use clonegate_core::{Error, ErrorKind};
use serde::Deserialize;

use super::output::Form;

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    /// The process exit code.
    pub exit: u8,
    /// The stable code.
    pub code: String,
    /// What happened, to what, and what to do.
    pub text: String,
}

impl Failure {
    /// Tells it on standard error: one line for people, or one object for programs. Gives the exit code.
    pub fn told_to(&self, form: Form) -> ExitCode {
        match form {
            Form::Table => eprintln!("clonegate: {}", self.text),
            Form::Json => {
                let told = serde_json::json!({ "code": self.code, "message": self.text, "exit": self.exit });
                eprintln!("{told}");
            }
        }
        ExitCode::from(self.exit)
    }
}

impl Failure {
    /// Says which file of the caller's was refused: who has it only by its bytes cannot. A server that is not there has refused none.
    pub(super) fn about(mut self, file: &Path) -> Self {
        if self.exit != ErrorKind::Unavailable.exit_code() {
            self.text.insert_str(0, &format!("{}: ", file.display()));
        }
        self
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { exit: error.kind().exit_code(), code: error.code().to_owned(), text: error.to_string() }
    }
}

/// `application/problem+json` as far as the command line needs it.
#[derive(Debug, Deserialize)]
pub(super) struct Problem {
    #[serde(default)]
    title: String,
    #[serde(default)]
    code: String,
    #[serde(default)]
    detail: String,
    object: Option<String>,
    hint: Option<String>,
}

const KINDS: [ErrorKind; 11] = [
    ErrorKind::NotFound,
    ErrorKind::Exists,
    ErrorKind::Conflict,
    ErrorKind::Fenced,
    ErrorKind::Denied,
    ErrorKind::Invalid,
    ErrorKind::Corrupt,
    ErrorKind::Unavailable,
    ErrorKind::Exhausted,
    ErrorKind::Unsupported,
    ErrorKind::Internal,
];

impl Failure {
    /// The failure that an answer of the gateway tells.
    pub(super) fn of_answer(status: u16, body: &[u8]) -> Self {
        let Ok(problem) = serde_json::from_slice::<Problem>(body) else {
            return Self {
                exit: exit_of_status(status),
                code: "bad-answer".to_owned(),
                text: format!("the server answered {status}: is it a clonegate gateway?"),
            };
        };
        let (object, hint) = (problem.object.as_deref(), problem.hint.as_deref());
        let told = Self::told(&problem.title, problem.code, &problem.detail, object, hint);
        if kind_of(&problem.title).is_some() { told } else { Self { exit: exit_of_status(status), ..told } }
    }

    /// The failure that these words tell; `kind` is one of [`ErrorKind`] in words.
    pub(super) fn told(kind: &str, code: String, detail: &str, object: Option<&str>, hint: Option<&str>) -> Self {
        let mut text = object.map(|object| format!("{object}: ")).unwrap_or_default();
        text.push_str(detail);
        if let Some(hint) = hint {
            text.push_str(&format!(" ({hint})"));
        }
        Self { exit: kind_of(kind).map_or(1, ErrorKind::exit_code), code, text }
    }
}

fn kind_of(words: &str) -> Option<ErrorKind> {
    KINDS.into_iter().find(|kind| kind.to_string() == words)
}

fn exit_of_status(status: u16) -> u8 {
    match status {
        404 => 3,
        409 | 412 => 4,
        401 | 403 | 501 => 5,
        400..=499 => 2,
        503 | 504 | 507 => 6,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_gives_the_exit_code_of_its_kind() {
        let body =
            br#"{"title":"conflict","status":409,"code":"referenced","detail":"it has clones","object":"win11"}"#;
        let failure = Failure::of_answer(409, body);
        assert_eq!(
            (failure.exit, failure.code.as_str(), failure.text.as_str()),
            (4, "referenced", "win11: it has clones")
        );
        for (status, exit) in [(404, 3), (400, 2), (403, 5), (503, 6), (500, 1)] {
            assert_eq!(Failure::of_answer(status, b"<html>").exit, exit, "{status}");
        }
    }
}
