//! Programs of the system that are called by name, and the Debian package of each.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::{Step, debian};
use crate::toolchain::find_program;

/// A program of the system.
#[derive(Debug)]
pub struct Program {
    /// How it is called.
    pub name: &'static str,
    /// The Debian package that has it.
    pub package: &'static str,
}

const JAVA: Program = Program { name: "java", package: "default-jre-headless" };

/// What the tests start.
pub const TEST_PROGRAMS: &[Program] = &[
    Program { name: "runc", package: "runc" },
    Program { name: "ip", package: "iproute2" },
    Program { name: "curl", package: "curl" },
    JAVA,
];

/// Builds the collector.
pub const GO: &[Program] = &[Program { name: "go", package: "golang-go" }];

/// Loads the broker.
pub const MAVEN: &[Program] = &[Program { name: "mvn", package: "maven" }, JAVA];

/// The step that installs a list of programs.
#[derive(Debug)]
pub struct Programs(pub &'static [Program]);

impl Step for Programs {
    fn what(&self) -> String {
        packages(&missing(self.0)).join(", ")
    }

    fn why(&self) -> &'static str {
        "which tests start"
    }

    fn place(&self) -> PathBuf {
        "/usr".into()
    }

    fn is_ready(&self) -> bool {
        missing(self.0).is_empty()
    }

    fn install(&self) -> Result<()> {
        install(&missing(self.0))
    }
}

/// Installs those of the programs that are missing, as a precondition of another step.
pub fn ensure(programs: &'static [Program]) -> Result<()> {
    let missing = missing(programs);
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("setup: installing {} into /usr", packages(&missing).join(", "));
    install(&missing)
}

fn missing(programs: &'static [Program]) -> Vec<&'static Program> {
    programs.iter().filter(|program| find_program(program.name).is_none()).collect()
}

fn install(missing: &[&Program]) -> Result<()> {
    debian::install(&packages(missing)).with_context(|| {
        let names: Vec<_> = missing.iter().map(|program| program.name).collect();
        format!("no {} in PATH; install it (Debian: {})", names.join(", "), packages(missing).join(" "))
    })
}

/// The packages of the programs, each once.
pub fn packages(programs: &[&Program]) -> Vec<&'static str> {
    let mut packages: Vec<_> = programs.iter().map(|program| program.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_of_several_programs_is_named_once() {
        let program = |name, package| Program { name, package };
        let [b, a, c] = [program("b", "two"), program("a", "one"), program("c", "two")];
        assert_eq!(packages(&[&b, &a, &c]), ["one", "two"]);
    }

    #[test]
    fn only_missing_programs_are_installed() {
        static PROGRAMS: &[Program] = &[
            Program { name: "sh", package: "dash" },
            Program { name: "leaf-no-such-program", package: "leaf-no-such-package" },
        ];
        assert_eq!(packages(&missing(PROGRAMS)), ["leaf-no-such-package"]);
        assert!(!Programs(PROGRAMS).is_ready());
        assert!(Programs(&PROGRAMS[..1]).is_ready());
    }
}
