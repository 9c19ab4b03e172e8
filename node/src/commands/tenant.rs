//! `spandrel tenant`.

use serde_json::json;

use super::{connect, print_json};
use crate::cli::TenantCommand;
use crate::output::print;

/// Runs one of the tenant commands.
///
/// # Errors
/// What went wrong and what to try next.
pub async fn run(command: TenantCommand) -> anyhow::Result<()> {
    match command {
        TenantCommand::Create { name, client } => {
            let tenant = name.to_string();
            connect(&client).await?.create_tenant(&tenant).await?;
            if client.json {
                return print_json(&json!({"tenant": tenant}));
            }
            Ok(print(&format!("traces of `{tenant}` are taken\n"))?)
        }
        TenantCommand::List { client } => {
            let tenants = connect(&client).await?.tenants().await?;
            if client.json {
                return print_json(&json!({"tenants": tenants}));
            }
            let lines = tenants.iter().map(|tenant| format!("{tenant}\n"));
            Ok(print(&lines.collect::<String>())?)
        }
    }
}
