//! `spandrel policy`.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use serde_json::json;
use spandrel_model::policy::{PolicySet, import_collector};

use super::{connect, print_json};
use crate::cli::PolicyCommand;
use crate::output::print;

/// Largest policy file in bytes: thousands of policies take less.
const MAX_POLICY_BYTES: u64 = 1 << 20;

/// Runs one of the policy commands.
///
/// # Errors
/// What went wrong and where in the file.
pub async fn run(command: PolicyCommand) -> anyhow::Result<()> {
    match command {
        PolicyCommand::Show { client: args } => {
            let policy = connect(&args).await?.policy().await?;
            if args.json {
                return print_json(&policy);
            }
            Ok(print(&format!(
                "# version {}\n{}\n",
                policy.version,
                policy.yaml.trim_end()
            ))?)
        }
        PolicyCommand::Apply { file, client: args } => {
            let yaml = read(&file)?;
            check(&yaml).with_context(|| format!("policy file `{}`", file.display()))?;
            let policy = connect(&args).await?.apply_policy(yaml).await?;
            if args.json {
                return print_json(&policy);
            }
            Ok(print(&format!("in force as version {}\n", policy.version))?)
        }
        PolicyCommand::Import { file, json } => {
            let yaml = read(&file)?;
            let import = import_collector(&yaml)
                .with_context(|| format!("collector file `{}`", file.display()))?;
            if json {
                return print_json(
                    &json!({"yaml": import.yaml, "notTakenOver": import.not_taken_over}),
                );
            }
            print(&import.yaml)?;
            for sentence in &import.not_taken_over {
                eprintln!("not taken over: {}", crate::waterfall::escape(sentence));
            }
            Ok(())
        }
        PolicyCommand::Check { file, json } => {
            let yaml = read(&file)?;
            let policies =
                check(&yaml).with_context(|| format!("policy file `{}`", file.display()))?;
            if json {
                return print_json(&json!({"valid": true, "policies": policies}));
            }
            Ok(print(&render(&policies))?)
        }
    }
}

/// One line a policy.
fn check(yaml: &str) -> anyhow::Result<Vec<String>> {
    Ok(PolicySet::parse(yaml, 0)?.describe())
}

fn render(policies: &[String]) -> String {
    let mut out = "valid\n".to_owned();
    for policy in policies {
        let _ = writeln!(out, "  {}", crate::waterfall::escape(policy));
    }
    out
}

fn read(file: &Path) -> anyhow::Result<String> {
    let size = std::fs::metadata(file)
        .with_context(|| format!("`{}`", file.display()))?
        .len();
    anyhow::ensure!(
        size <= MAX_POLICY_BYTES,
        "`{}` has {size} bytes, the limit is {MAX_POLICY_BYTES}",
        file.display()
    );
    std::fs::read_to_string(file).with_context(|| format!("`{}`", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_policy_is_valid_and_described() {
        let policies = check(spandrel_model::policy::DEFAULT_POLICY).unwrap();
        let shown = render(&policies);
        assert!(shown.starts_with("valid\n  "), "{shown}");
        assert!(shown.contains("error"), "{shown}");
    }

    #[test]
    fn a_wrong_policy_says_where() {
        let message = check("policies:\n  - name: x\n    type: nonsense\n")
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("nonsense") || message.contains("line"),
            "{message}"
        );
    }
}
