//! `spandrel node start`: composes the server and keeps it running until it is told to stop.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use rand::Rng;
use spandrel_actors::membership::NodeStart;
use spandrel_actors::{BlockingMode, Buggify, Clock, Env, Node, NodeOptions, StartPhase};
use spandrel_api::client::address_flag;
use spandrel_api::{Listeners, Ports, serve, serve_until_started};
use spandrel_model::ids::UnixNanos;
use spandrel_model::policy::{DEFAULT_POLICY, KEEP_ALL_POLICY, PolicySet};
use spandrel_raft::ClusterSeed;
use spandrel_raft::state::NodeAddresses;
use spandrel_storage::block::limits::{COLUMN_CACHE_BYTES, SUMMARY_CACHE_BYTES};
use spandrel_storage::disk::RealDisk;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::config::NodeStartOptions;
use crate::data_dir::TakenDirectory;
use crate::demo::{self, DemoOptions};
use crate::hub_links::HubLinks;

/// Bytes of a mebibyte.
const MIB: u64 = 1 << 20;
/// Bytes for page caches of the journal and of the blocks, each.
const STORE_CACHE_BYTES: u64 = 24 * MIB;
/// Bytes for decoded journal frames.
const FRAME_CACHE_BYTES: u64 = 16 * MIB;
/// Bytes for everything without a budget of its own: the index writer, page builders, filters, the runtime. Measured
/// beside the credit, the caches included: 281 MiB with the default policy at 296,000 spans/s, 252 MiB with
/// everything kept at 159,000; 476 MiB in all with 208 set aside, 4 below the bound, with everything kept beside other work.
const FIXED_BYTES: u64 = 224 * MIB;
/// Length of a time bucket: an hour.
const BUCKET_NANOS: u64 = 3_600 * UnixNanos::PER_SECOND;
/// Upper ends of the buckets of every duration, in seconds.
const SECONDS_BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
];
/// Seed of the demonstration traffic: the same shop every time.
const DEMO_SEED: u64 = 1;

/// Runs a node until it is told to stop.
///
/// # Errors
/// When the node cannot start.
pub async fn run(
    options: NodeStartOptions,
    start: NodeStart,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<()> {
    let metrics = install_metrics(&options)?;
    let listeners = Listeners {
        http: listen(options.http_addr, "--http-addr").await?,
        otlp_grpc: listen(options.otlp_grpc_addr, "--otlp-grpc-addr").await?,
        otlp_http: listen(options.otlp_http_addr, "--otlp-http-addr").await?,
    };
    let _taken = TakenDirectory::take(&options.data_dir)?;
    let founds = start == NodeStart::Found;
    let node_options = node_options(&options, start)?;
    let credit_bytes = node_options.credit_bytes;
    let policy_yaml = node_options.seed.policy_yaml.clone();
    let node = start_node(&listeners.http, node_options, environment(&options, clock)).await?;
    let ports = Ports {
        ingest: node.ingest(),
        query: node.query(),
        admin: node.admin(),
        metrics: Arc::new(move || {
            metrics.run_upkeep();
            metrics.render()
        }),
    };
    // A cluster that was just founded has the settings that were given.
    if !(founds && node.recovery.created) {
        warn_of_ignored_seeds(&options, &policy_yaml, &node);
    }
    banner(&options, &node, credit_bytes).await;
    let (stop_demo, demo_stopped) = watch::channel(false);
    if options.demo {
        let endpoint = format!("http://{}", options.otlp_grpc_addr);
        tokio::spawn(async move {
            let demo = DemoOptions::beside_a_node(endpoint, DEMO_SEED);
            if let Err(error) = demo::run(demo, demo_stopped).await {
                tracing::warn!(%error, "the demonstration traffic ended");
            }
        });
    }
    serve(listeners, ports, Box::pin(asked_to_stop())).await?;
    let _ = stop_demo.send(true);
    tracing::info!("stopping: making what was accepted durable");
    node.stop().await;
    Ok(())
}

/// Starts the node, and tells those who ask meanwhile how far it is.
async fn start_node(http: &TcpListener, options: NodeOptions, env: Env) -> anyhow::Result<Node> {
    let (phase, at) = watch::channel(StartPhase::default());
    let env = Env {
        start_phase: Arc::new(move |reached| {
            phase.send_replace(reached);
        }),
        ..env
    };
    let reason = Arc::new(move || at.borrow().to_string());
    let node = serve_until_started(http, reason, Node::start(options, env)).await?;
    Ok(node)
}

fn environment(options: &NodeStartOptions, clock: Arc<dyn Clock>) -> Env {
    let halt: Arc<dyn Fn(&str) + Send + Sync> = Arc::new(|reason| {
        tracing::error!(
            reason,
            "the node stops: what is durable is replayed at the next start"
        );
        std::process::exit(1);
    });
    Env {
        links: Arc::new(HubLinks {
            options: options.clone(),
            halt: Arc::clone(&halt),
        }),
        halt,
        clock,
        disk: Arc::new(RealDisk),
        blocking: BlockingMode::Threads,
        start_phase: Arc::new(drop),
        buggify: Buggify::default(),
        secret: Arc::new(|| {
            #[allow(clippy::disallowed_methods)]
            // the one source of secrets behind `Env` in production
            let mut random = rand::rng();
            let mut bits = [0; 32];
            random.fill_bytes(&mut bits);
            bits
        }),
    }
}

fn install_metrics(options: &NodeStartOptions) -> anyhow::Result<PrometheusHandle> {
    PrometheusBuilder::new()
        .add_global_label("node", options.advertise_addr.to_string())
        .add_global_label("zone", &options.zone)
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)
        .and_then(PrometheusBuilder::install_recorder)
        .context("metrics cannot be set up")
}

async fn listen(addr: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    if !addr.ip().is_loopback() {
        tracing::warn!(%addr, flag, "no client is authenticated yet: use a trusted network only");
    }
    TcpListener::bind(addr).await.map_err(|error| {
        let taken = if error.kind() == std::io::ErrorKind::AddrInUse {
            " (perhaps by a node that runs already: `spandrel node status` tells)"
        } else {
            ""
        };
        anyhow::anyhow!("cannot listen on {addr}: {error}{taken}; choose another with {flag}")
    })
}

fn node_options(options: &NodeStartOptions, start: NodeStart) -> anyhow::Result<NodeOptions> {
    let policy_yaml = match (&options.policy, options.keep_all) {
        (Some(path), _) => std::fs::read_to_string(path)
            .with_context(|| format!("the policy file {} cannot be read", path.display()))?,
        (None, true) => KEEP_ALL_POLICY.to_owned(),
        (None, false) => DEFAULT_POLICY.to_owned(),
    };
    PolicySet::parse(&policy_yaml, 1).context("the policy is not valid")?;
    let query_caches = u64::try_from(SUMMARY_CACHE_BYTES + COLUMN_CACHE_BYTES)?;
    let fixed = 2 * STORE_CACHE_BYTES + FRAME_CACHE_BYTES + query_caches + FIXED_BYTES;
    // The least memory that the settings allow leaves room for credit.
    let credit_bytes = options.memory_bytes.saturating_sub(fixed);
    #[allow(clippy::disallowed_methods)]
    // identities of a new cluster and directory are drawn once, here
    let mut random = rand::rng();
    Ok(NodeOptions {
        data_dir: options.data_dir.clone(),
        credit_bytes,
        frame_cache_bytes: usize::try_from(FRAME_CACHE_BYTES)?,
        store_cache_bytes: usize::try_from(STORE_CACHE_BYTES)?,
        recovery_window_seconds: options.journal_recovery_window_ms / 1_000,
        journal_max_bytes: options.journal_max_bytes,
        disk_reserve_bytes: options.disk_reserve_bytes,
        bucket_nanos: BUCKET_NANOS,
        require_tenant: options.require_tenant,
        start,
        // On loopback everybody is somebody on this machine.
        require_join_token: !options.link_addr.ip().is_loopback(),
        seed: ClusterSeed {
            cluster_id: random.next_u64().max(1),
            routing_key: random.next_u64(),
            shards: options.shards,
            replication: options.replication,
            retention_seconds: options.retention_seconds,
            policy_yaml,
        },
        new_disk_id: random.next_u64().max(1),
        addresses: NodeAddresses {
            link: options.advertise_addr.to_string(),
            http: options.http_addr.to_string(),
            grpc: options.otlp_grpc_addr.to_string(),
        },
        zone: options.zone.clone(),
    })
}

fn warn_of_ignored_seeds(options: &NodeStartOptions, policy_yaml: &str, node: &Node) {
    let cluster = node.cluster();
    for seed in &options.given_seeds {
        let (same, command) = match *seed {
            "shards" => (options.shards == cluster.shards, "a cluster command"),
            "replication" => (
                options.replication == cluster.replication,
                "a cluster command",
            ),
            "retention" => (
                options.retention_seconds == cluster.retention_seconds,
                "a cluster command",
            ),
            _ => (
                policy_yaml == cluster.policy.yaml,
                "spandrel policy apply FILE",
            ),
        };
        if same {
            continue;
        }
        tracing::warn!(
            setting = seed,
            "ignored: the cluster has its own value; change it by `{command}`"
        );
    }
}

async fn banner(options: &NodeStartOptions, node: &Node, credit_bytes: u64) {
    let status = node.admin().status().await;
    let recovery = node.recovery;
    println!("spandrel {} - cluster {}", status.version, status.cluster);
    println!("  data        {}", options.data_dir.display());
    println!("  page, API   http://{}", options.http_addr);
    println!("  OTLP/gRPC   http://{}", options.otlp_grpc_addr);
    println!("  OTLP/HTTP   http://{}", options.otlp_http_addr);
    println!(
        "  memory      {} MiB, of which {} MiB are credit for spans, open traces and queries",
        options.memory_bytes / MIB,
        credit_bytes / MIB
    );
    if !recovery.created {
        println!(
            "  recovered   {} journal frames, {} undecided or unpaged spans",
            recovery.frames, recovery.spans
        );
        if recovery.lost_frames + recovery.lost_slices > 0 {
            println!(
                "  LOST        {} frames and {} whole slices of the journal are damaged: the log names their records",
                recovery.lost_frames, recovery.lost_slices
            );
        }
    }
    println!(
        "  policy      version {}: any of them keeps a trace, unless one drops it",
        status.policy_version
    );
    for policy in &status.policies {
        println!("                {policy}");
    }
    println!(
        "  keep all    start a new directory with --keep-all, or `spandrel policy apply FILE`"
    );
    println!(
        "  first span  OTEL_EXPORTER_OTLP_ENDPOINT=http://{} your-program",
        options.otlp_grpc_addr
    );
    println!(
        "              or `spandrel demo --spans 1000{}`; then `spandrel query search{}`",
        address_flag("--endpoint", options.otlp_grpc_addr),
        address_flag("--addr", options.http_addr),
    );
}

/// Ends at the first interrupt or termination signal.
async fn asked_to_stop() {
    let interrupt = tokio::signal::ctrl_c();
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        _ = interrupt => {}
        () = terminate => {}
    }
}
