//! `spandrel config`.

use crate::cli::{ConfigCommand, NodeArgs};
use crate::config::{ConfigError, NodeSettings, NodeStartOptions};

/// Prints the effective settings as a file for `--config`, or says what is wrong.
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
    // JSON values are YAML, and every key of an object is a line.
    let document = serde_json::to_value(options.as_settings())?;
    let mut out = String::new();
    for (key, value) in document.as_object().into_iter().flatten() {
        if !value.is_null() {
            out.push_str(&format!("{key}: {value}\n"));
        }
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
            "retention: \"2d\"",
            "zone: \"b\"",
            "demo: true",
            "replication: 3",
        ] {
            assert!(shown.contains(line), "{line} in {shown}");
        }
    }

    #[test]
    fn what_is_printed_can_be_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.yaml");
        let path = path.to_str().unwrap();
        for arguments in [
            &["--memory", "1GiB", "--retention", "90m"][..],
            &["--keep-all"],
        ] {
            let mut first = options(parse(arguments)).unwrap();
            std::fs::write(path, render(&first).unwrap()).unwrap();
            let again = options(parse(&["--config", path])).unwrap();
            // Whoever writes a setting down has given it.
            first.given_seeds.clone_from(&again.given_seeds);
            assert_eq!(again, first);
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
