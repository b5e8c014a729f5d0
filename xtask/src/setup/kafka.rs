//! The jars of an Apache Kafka broker and its tools.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::Step;
use super::programs::{MAVEN, Program};
use super::stamp::{Stamp, fingerprint};
use crate::shell;
use crate::workspace::Workspace;

const VERSION: &str = "4.3.1";

/// Group, artifact and version of what a broker, its tools and its log need.
const ARTIFACTS: [(&str, &str, &str); 3] = [
    ("org.apache.kafka", "kafka_2.13", VERSION),
    ("org.apache.kafka", "kafka-tools", VERSION),
    ("org.slf4j", "slf4j-simple", "1.7.36"),
];

/// Kafka's jars in target/tools/kafka/lib.
#[derive(Debug)]
pub struct Kafka {
    folder: PathBuf,
    stamp: Stamp,
}

impl Kafka {
    pub fn new(workspace: &Workspace) -> Self {
        let tools = workspace.tools();
        Self { folder: tools.join("kafka"), stamp: Stamp::new(&tools, "kafka", fingerprint(&project())) }
    }
}

impl Step for Kafka {
    fn what(&self) -> String {
        format!("Apache Kafka {VERSION}")
    }

    fn why(&self) -> &'static str {
        "the broker that tests read from"
    }

    fn place(&self) -> PathBuf {
        self.folder.join("lib")
    }

    fn needs(&self) -> &'static [Program] {
        MAVEN
    }

    fn is_ready(&self) -> bool {
        self.stamp.is_current() && self.place().is_dir()
    }

    fn install(&self) -> Result<()> {
        let named = || format!("cannot write {}", self.folder.display());
        let fresh = self.folder.join("lib.partial");
        fs::create_dir_all(&self.folder).with_context(named)?;
        for old in [&fresh, &self.place()] {
            if old.exists() {
                fs::remove_dir_all(old).with_context(named)?;
            }
        }
        let pom = self.folder.join("pom.xml");
        fs::write(&pom, project()).with_context(named)?;
        shell::capture(
            Command::new("mvn")
                .args(["--batch-mode", "--quiet", "--file"])
                .arg(&pom)
                .arg("dependency:copy-dependencies")
                .arg(format!("-DoutputDirectory={}", fresh.display())),
        )?;
        fs::rename(&fresh, self.place()).with_context(named)?;
        self.stamp.write()
    }
}

/// A Maven project with the artifacts as its dependencies.
fn project() -> String {
    let dependencies: String = ARTIFACTS
        .iter()
        .map(|(group, artifact, version)| {
            format!(
                "    <dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>\
                 <version>{version}</version></dependency>\n"
            )
        })
        .collect();
    format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\">\n  \
         <modelVersion>4.0.0</modelVersion>\n  \
         <groupId>leaf</groupId><artifactId>test-broker</artifactId>\
         <version>1</version><packaging>pom</packaging>\n  \
         <dependencies>\n{dependencies}  </dependencies>\n</project>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_project_depends_on_each_artifact() {
        let project = project();
        assert_eq!(project.matches("<dependency>").count(), ARTIFACTS.len());
        assert!(project.contains("<artifactId>kafka-tools</artifactId><version>4.3.1</version>"));
        assert!(project.ends_with("</project>\n"));
    }
}
