//! `spandrel demo`.

use tokio::sync::watch;

use super::print_json;
use crate::cli::DemoArgs;
use crate::demo::{self, DemoOptions};

/// Sends traffic until told to stop, then reports.
///
/// # Errors
/// When the endpoint is not there, or an option is wrong.
pub async fn run(args: DemoArgs) -> anyhow::Result<()> {
    for (option, share) in [("--errors", args.errors), ("--slow", args.slow)] {
        anyhow::ensure!(
            (0.0..=1.0).contains(&share),
            "{option} must be from 0 to 1, got {share}"
        );
    }
    anyhow::ensure!(
        args.rate >= 0.0 && args.rate.is_finite(),
        "--rate must be 0 or more, got {}",
        args.rate
    );
    // Ids of two runs must not meet by default: the clock is the seed.
    let seed = args.seed.unwrap_or_else(|| spandrel_api::time::now().0);
    let options = DemoOptions {
        endpoint: args.endpoint,
        tenant: args.tenant,
        rate: args.rate,
        duration: args.duration,
        spans: args.spans,
        batch_spans: args.batch,
        connections: args.connections,
        seed,
        errors: args.errors,
        slow: args.slow,
        grouping: args.grouping,
        history: args.history,
        progress: !args.json,
    };
    let (stop, stopped) = watch::channel(false);
    let signal = tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            // Nobody listens any more when the run is over already.
            let _ = stop.send(true);
        }
        std::future::pending::<()>().await;
    });
    let report = demo::run(options, stopped).await?;
    signal.abort();
    if args.json {
        print_json(&report)?;
    } else {
        crate::output::print(&report.to_string())?;
    }
    anyhow::ensure!(
        report.abandoned_spans == 0,
        "{} spans were given up: {}",
        report.abandoned_spans,
        report.last_refusal
    );
    Ok(())
}
