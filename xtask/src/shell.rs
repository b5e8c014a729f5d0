//! Calls of other programs, with errors that name the program and what it was told.

use std::io;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// Runs a program that may talk to the user, and waits for it.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| cannot_start(command))?;
    if !status.success() {
        bail!("{} failed: {status}", describe(command));
    }
    Ok(())
}

/// As [`run`], with the program's output on our stderr: stdout belongs to the
/// data of the agent that `cargo xtask run` becomes.
pub fn run_on_stderr(command: &mut Command) -> Result<()> {
    run(command.stdin(Stdio::null()).stdout(io::stderr()))
}

/// Runs a program unheard; what it said appears only if it fails.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| cannot_start(command))?;
    if !output.status.success() {
        bail!("{} failed: {}{}", describe(command), output.status, last_words(&output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// As [`run`], with the program's standard output as the result.
pub fn stdout(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output().with_context(|| cannot_start(command))?;
    if !output.status.success() {
        bail!("{} failed: {}", describe(command), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command as one would type it, without its environment.
fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program());
    // `cargo`, though it was called by its full path.
    let name = program.file_name().unwrap_or(program.as_os_str());
    let mut line = format!("`{}", name.display());
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line.push('`');
    line
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start `{}`: is it installed and in PATH?", command.get_program().display())
}

/// The end of what a failed program wrote: where programs put their reason.
fn last_words(output: &Output) -> String {
    const LINES: usize = 8;
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].iter().map(|line| format!("\n    {line}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_its_status_and_its_last_words() {
        let error = capture(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).expect_err("exit 3").to_string();
        assert!(error.contains("`sh -c echo why"), "{error}");
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(error.ends_with("\n    why"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("leaf-no-such-program")).expect_err("missing");
        assert!(error.to_string().contains("`leaf-no-such-program`"));
    }
}
