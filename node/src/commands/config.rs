//! `spandrel config`.

use crate::cli::{ConfigCommand, NodeArgs};
use crate::config::{ConfigError, NodeSettings, NodeStartOptions};

/// Prints the effective settings as YAML, or says what is wrong.
///
/// # Errors
/// As [`options`].
pub fn run(command: ConfigCommand) -> anyhow::Result<()> {
    let ConfigCommand::Check(args) = command;
    let options = options(*args)?;
    Ok(crate::output::print(&render(&options)?)?)
}

/// The settings of a node: flags and environment, then the file, then the defaults.
///
/// # Errors
/// A file that cannot be read or a value that breaks its rule.
pub fn options(args: NodeArgs) -> Result<NodeStartOptions, ConfigError> {
    let file = match &args.config {
        Some(path) => NodeSettings::read(path)?,
        None => NodeSettings::default(),
    };
    args.settings.or(file).resolve()
}

fn render(options: &NodeStartOptions) -> anyhow::Result<String> {
    let document = serde_json::to_value(options)?;
    let mut out = String::new();
    for (key, value) in document.as_object().into_iter().flatten() {
        out.push_str(&format!("{key}: {value}\n"));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(arguments: &[&str]) -> NodeArgs {
        let all = ["spandrel", "config", "check"].iter().chain(arguments);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Config(ConfigCommand::Check(args)) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_flag_goes_before_the_file_and_the_file_before_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.yaml");
        std::fs::write(&path, "shards: 128\nretention: 2d\nzone: a\n").unwrap();
        let args = parse(&["--config", path.to_str().unwrap(), "--zone", "b", "--demo"]);
        let shown = render(&options(args).unwrap()).unwrap();
        for line in [
            "shards: 128",
            "retention_seconds: 172800",
            "zone: \"b\"",
            "demo: true",
            "replication: 3",
        ] {
            assert!(shown.contains(line), "{line} in {shown}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let message = options(parse(&["--config", "/nowhere.yaml"]))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("`/nowhere.yaml` cannot be read"),
            "{message}"
        );
    }
}
