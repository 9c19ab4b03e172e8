//! `spandrel token`.

use spandrel_api::dto::JoinTokenResponse;
use spandrel_api::time::format_instant;

use super::{connect, print_json};
use crate::cli::TokenCommand;
use crate::output::print;

/// Runs one of the token commands.
///
/// # Errors
/// What went wrong and what to try next.
pub async fn run(command: TokenCommand) -> anyhow::Result<()> {
    let TokenCommand::Create { join: _, client } = command;
    let token = connect(&client).await?.create_join_token().await?;
    if client.json {
        return print_json(&token);
    }
    // The token alone on standard output, so that a script can take it; what to do with it beside it.
    eprintln!("{}", advice(&token));
    Ok(print(&format!("{}\n", token.token))?)
}

fn advice(token: &JoinTokenResponse) -> String {
    format!(
        "any number of nodes can join with it until {}: `SPANDREL_JOIN_TOKEN=... spandrel node join ADDRESS`. It is shown this once.",
        format_instant(token.expires.0)
    )
}

#[cfg(test)]
mod tests {
    use spandrel_api::time::Instant;
    use spandrel_model::ids::UnixNanos;

    use super::*;

    #[test]
    fn the_advice_does_not_hold_the_token() {
        let token = JoinTokenResponse {
            token: "spandrel-join-secret".to_owned(),
            expires: Instant(UnixNanos(0)),
        };
        let shown = advice(&token);
        assert!(
            shown.contains("1970") && !shown.contains("secret"),
            "{shown}"
        );
    }
}
