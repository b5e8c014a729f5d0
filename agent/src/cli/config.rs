//! `agent config`: what is configured, and whether it is valid.

use super::{File, Refused};

/// Show or check the configuration.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print every setting, its value and where it comes from
    Show(File),
    /// Check the configuration and name what is wrong
    Check(File),
}

/// Runs the command.
pub fn execute(args: Args) -> Result<(), Refused> {
    match args.command {
        Command::Show(file) => {
            let settings = file.read(Vec::new())?.settings();
            let width =
                |of: fn(&(String, String, String)) -> &str| settings.iter().map(|s| of(s).len()).max().unwrap_or(0);
            let (keys, values) = (width(|s| &s.0), width(|s| &s.1).min(40));
            let mut text = String::new();
            for (key, value, source) in &settings {
                text.push_str(&format!("{key:<keys$}  {value:<values$}  {source}\n"));
            }
            super::print(&text)
        }
        Command::Check(file) => {
            file.read(Vec::new())?;
            super::print("the configuration is valid\n")
        }
    }
}
