//! A real node: a process of its own, on ports of its own, in a directory of its own.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use spandrel_api::client::{Client, ClientOptions};
use tempfile::TempDir;

use crate::http;
use crate::limits::{
    CALL_TIMEOUT_MS, LEAVE_DEADLINE, POLL_INTERVAL, PORT_ATTEMPTS, READY_DEADLINE, SHOWN_LOG_LINES,
    SMALL_DISK_BYTES, SMALL_DISK_RESERVE_BYTES, STOP_DEADLINE,
};
use crate::link_proxy::LinkProxy;
use crate::ports::Ports;
use crate::shift_file::ShiftFile;
use crate::small_disk::SmallDisk;

/// What a node is, in its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The first one.
    First,
    /// It joins by one of these link addresses.
    Joins(Vec<SocketAddr>),
}

/// Where a node's data is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DiskKind {
    /// On the machine's disk, with whatever else is there.
    #[default]
    Shared,
    /// On a disk of its own that can be full: [`SmallDisk`].
    Small,
}

/// What a node's wall clock is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ClockKind {
    /// The machine's.
    #[default]
    System,
    /// The machine's and a shift: [`ShiftFile`].
    Shifted,
}

/// What a node has of its own, so that it can be struck there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MachineOptions {
    /// Where its data is.
    pub disk: DiskKind,
    /// What its wall clock is.
    pub clock: ClockKind,
}

/// How a node is started.
#[derive(Debug)]
pub struct NodeOptions<'a> {
    /// What it is.
    pub role: Role,
    /// Further flags.
    pub arguments: &'a [&'a str],
    /// The text of its policy file.
    pub policy: Option<&'a str>,
    /// What other nodes reach it through.
    pub proxy: Option<LinkProxy>,
    /// What it has of its own.
    pub machine: MachineOptions,
}

/// A node with its directory. Dropping it kills the process and removes the directory.
///
/// Invariants: at most one process runs in the directory; the ports stay the same over restarts.
#[derive(Debug)]
pub struct NodeProcess {
    binary: PathBuf,
    /// Before the directory that it is mounted in: it is dropped first.
    disk: Option<SmallDisk>,
    clock: Option<ShiftFile>,
    directory: TempDir,
    role: Role,
    arguments: Vec<String>,
    proxy: Option<LinkProxy>,
    ports: Ports,
    child: Option<Child>,
    lives: u32,
}

impl NodeProcess {
    /// Starts a new node in a new directory and waits until it is ready. `policy` is the text of its policy file.
    ///
    /// # Errors
    /// When there is no binary, or the node does not become ready in time; its log is in the message.
    pub async fn start(arguments: &[&str], policy: Option<&str>) -> anyhow::Result<Self> {
        Self::start_as(NodeOptions {
            role: Role::First,
            arguments,
            policy,
            proxy: None,
            machine: MachineOptions::default(),
        })
        .await
    }

    /// Starts a new node in a new directory and waits until it is ready.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_as(options: NodeOptions<'_>) -> anyhow::Result<Self> {
        let NodeOptions {
            role,
            arguments,
            policy,
            proxy,
            machine,
        } = options;
        let directory = tempfile::tempdir()?;
        let disk = match machine.disk {
            DiskKind::Shared => None,
            DiskKind::Small => {
                let at = directory.path().join("disk");
                Some(SmallDisk::mount(at, SMALL_DISK_BYTES)?)
            }
        };
        let clock = match machine.clock {
            ClockKind::System => None,
            ClockKind::Shifted => Some(ShiftFile::create(directory.path().join("shift"))?),
        };
        let mut arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
        if let Some(policy) = policy {
            let path = directory.path().join("policy.yaml");
            std::fs::write(&path, policy)?;
            arguments.push(format!("--policy={}", path.display()));
        }
        let mut node = Self {
            binary: program(machine.clock)?,
            disk,
            clock,
            directory,
            role,
            arguments,
            proxy,
            ports: Ports::free()?,
            child: None,
            lives: 0,
        };
        for attempt in 1..=PORT_ATTEMPTS {
            match node.restart().await {
                Ok(()) => return Ok(node),
                Err(error) if attempt < PORT_ATTEMPTS && node.log().contains("cannot listen") => {
                    eprintln!("a port was taken meanwhile, trying others: {error}");
                    node.ports = Ports::free()?;
                }
                Err(error) => return Err(error),
            }
        }
        bail!("no free ports in {PORT_ATTEMPTS} attempts")
    }

    /// Starts the process again, on the same ports and directory, and waits until it is ready.
    ///
    /// # Errors
    /// When it runs already, cannot be started, exits, or is not ready in time; its log is in the message.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        ensure!(self.child.is_none(), "the node runs already");
        self.lives += 1;
        let log = File::create(self.log_path())?;
        if let Some(proxy) = &self.proxy {
            proxy.leads_to(self.ports.link);
        }
        let child = self
            .command(self.ports)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{} cannot be started", self.binary.display()))?;
        if let Some(proxy) = &self.proxy {
            proxy.belongs_to(child.id());
        }
        self.child = Some(child);
        let ready = self.wait_until_ready().await;
        if ready.is_err() {
            self.kill()?;
        }
        ready.with_context(|| format!("life {}; its log ends:\n{}", self.lives, self.log_end()))
    }

    /// The program.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// The next process is started with one more flag.
    pub fn add_argument(&mut self, argument: &str) {
        self.arguments.push(argument.to_owned());
    }

    /// The next process is started without a flag.
    pub fn drop_argument(&mut self, argument: &str) {
        self.arguments.retain(|known| known != argument);
    }

    fn command(&self, ports: Ports) -> Command {
        let mut command = Command::new(&self.binary);
        match &self.role {
            Role::First => command.args(["node", "start"]),
            Role::Joins(members) => {
                let members = members.iter().map(ToString::to_string);
                command.args(["node", "join"]).args(members)
            }
        };
        if let Some(proxy) = &self.proxy {
            command.args(["--advertise-addr", &proxy.addr().to_string()]);
        }
        command
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(["--http-addr", &ports.http.to_string()])
            .args(["--otlp-grpc-addr", &ports.otlp_grpc.to_string()])
            .args(["--otlp-http-addr", &ports.otlp_http.to_string()])
            .args(["--link-addr", &ports.link.to_string()])
            .args(["--disk-reserve", &format!("{}B", self.disk_reserve_bytes())])
            .args(&self.arguments)
            .stdin(Stdio::null());
        self.give_clock(&mut command);
        command
    }

    /// What else is on the disk of the machine is no part of a test.
    fn disk_reserve_bytes(&self) -> u64 {
        let own = self.disk.as_ref();
        own.map_or(0, |_| SMALL_DISK_RESERVE_BYTES)
    }

    fn give_clock(&self, command: &mut Command) {
        if let Some(clock) = &self.clock {
            command.env("SPANDREL_SHIFT_FILE", clock.path());
        }
    }

    /// Lets the node hand over all that it has, by `spandrel node leave`, which returns when that is done.
    ///
    /// # Errors
    /// When it fails or is not done in time.
    pub async fn leave(&self) -> anyhow::Result<()> {
        let mut command = Command::new(&self.binary);
        let addr = format!("http://{}", self.ports.http);
        command.args(["node", "leave", "--addr", &addr]);
        self.give_clock(&mut command);
        let mut command = tokio::process::Command::from(command);
        let leaves = command.stdin(Stdio::null()).kill_on_drop(true).output();
        let output = tokio::time::timeout(LEAVE_DEADLINE, leaves).await;
        let output =
            output.with_context(|| format!("it had not left after {LEAVE_DEADLINE:?}"))??;
        ensure!(
            output.status.success(),
            "`spandrel node leave` failed: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Empties the data directory: the next process is another node, which joins by one of these link addresses.
    ///
    /// # Errors
    /// When a process runs, or the directory cannot be emptied.
    pub fn renew(&mut self, members: Vec<SocketAddr>) -> anyhow::Result<()> {
        ensure!(self.child.is_none(), "the node runs");
        std::fs::remove_dir_all(self.data_dir())?;
        self.role = Role::Joins(members);
        Ok(())
    }

    /// Whether the process has ended by itself since it was started.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        let Some(child) = &mut self.child else {
            return Ok(false);
        };
        let has_ended = child.try_wait()?.is_some();
        if has_ended {
            self.child = None;
        }
        Ok(has_ended)
    }

    /// The disk that it has for itself.
    ///
    /// # Errors
    /// When it shares the machine's.
    pub fn disk(&self) -> anyhow::Result<&SmallDisk> {
        self.disk
            .as_ref()
            .context("the node has no disk of its own")
    }

    /// By how much its clock is wrong.
    ///
    /// # Errors
    /// When it has the machine's.
    pub fn clock(&self) -> anyhow::Result<&ShiftFile> {
        self.clock
            .as_ref()
            .context("the node has the machine's clock")
    }

    /// Starts another process on the directory of this one, on ports of its own, and answers with what it complained
    /// of when it ended.
    ///
    /// # Errors
    /// When it cannot be started, or runs.
    pub async fn second_process(&self) -> anyhow::Result<String> {
        let path = self.directory.path().join("second-process.log");
        let log = File::create(&path)?;
        let mut command = self.command(Ports::free()?);
        let mut second = command.stdout(log.try_clone()?).stderr(log).spawn()?;
        let since = Instant::now();
        while since.elapsed() < READY_DEADLINE {
            if let Some(status) = second.try_wait()? {
                ensure!(!status.success(), "it ended well");
                return Ok(std::fs::read_to_string(&path)?);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        second.kill()?;
        second.wait()?;
        bail!("a second process runs on {}", self.data_dir().display())
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let since = Instant::now();
        while since.elapsed() < READY_DEADLINE {
            if let Some(status) = self.child.as_mut().context("no process")?.try_wait()? {
                bail!("the node ended while it started: {status}");
            }
            let answer = http::get(self.ports.http, "/ready", "*/*").await;
            if answer.is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        bail!("the node was not ready after {READY_DEADLINE:?}")
    }

    /// Kills the process with SIGKILL and waits until it is gone. Nothing happens when it does not run.
    ///
    /// # Errors
    /// When the system cannot kill it.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Stops the process where it is (SIGSTOP): it answers nobody, and its connections stay open. It may still be
    /// killed.
    ///
    /// # Errors
    /// When it does not run or the system does not do it.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.signal("-STOP")
    }

    /// Lets a paused process go on (SIGCONT).
    ///
    /// # Errors
    /// As [`Self::pause`].
    pub fn resume(&self) -> anyhow::Result<()> {
        self.signal("-CONT")
    }

    fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let id = self.child.as_ref().context("the node does not run")?.id();
        let sent = Command::new("kill")
            .args([signal, &id.to_string()])
            .status()?;
        ensure!(sent.success(), "kill {signal} {id}: {sent}");
        Ok(())
    }

    /// Asks the process to stop (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// When it does not run, does not stop in time, or ends with another status than success.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        self.signal("-TERM")?;
        let since = Instant::now();
        while since.elapsed() < STOP_DEADLINE {
            if let Some(status) = self.child.as_mut().context("no process")?.try_wait()? {
                self.child = None;
                ensure!(
                    status.success(),
                    "the node stopped with {status}; its log ends:\n{}",
                    self.log_end()
                );
                return Ok(());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        self.kill()?;
        bail!(
            "the node did not stop within {STOP_DEADLINE:?}; its log ends:\n{}",
            self.log_end()
        )
    }

    /// What the system says of the process, for a failure: its state, and its exit code (a signal, or 256 times the
    /// status) when it has ended.
    #[must_use]
    pub fn process_state(&self) -> String {
        let Some(child) = &self.child else {
            return "none".to_owned();
        };
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id()));
        let stat = stat.unwrap_or_default();
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        let (state, code) = (fields.next(), fields.next_back());
        let code = code.unwrap_or_default().trim();
        format!("state {}, exit code {code}", state.unwrap_or_default())
    }

    /// Where it listens.
    #[must_use]
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Where other nodes reach it.
    #[must_use]
    pub fn advertised(&self) -> SocketAddr {
        let proxy = self.proxy.as_ref();
        proxy.map_or(self.ports.link, LinkProxy::addr)
    }

    /// Its data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        let disk = self.disk.as_ref().map(SmallDisk::path);
        disk.unwrap_or(self.directory.path()).join("data")
    }

    /// What the process of this life wrote to its output, banner and log.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Anonymous resident memory in bytes.
    ///
    /// # Errors
    /// When it does not run or the system does not tell.
    pub fn anonymous_bytes(&self) -> anyhow::Result<u64> {
        let id = self.child.as_ref().context("the node does not run")?.id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.context("no RssAnon")?.trim().trim_end_matches(" kB");
        Ok(kib.parse::<u64>()? * 1024)
    }

    /// A client of the native API.
    ///
    /// # Errors
    /// When the node is not reached.
    pub async fn client(&self) -> anyhow::Result<Client> {
        connect(self.ports.http).await
    }

    /// A client that exports.
    ///
    /// # Errors
    /// When the node is not reached.
    pub async fn exporter(&self) -> anyhow::Result<Client> {
        connect(self.ports.otlp_grpc).await
    }

    fn log_path(&self) -> PathBuf {
        self.directory
            .path()
            .join(format!("life-{}.log", self.lives))
    }

    /// The last lines of [`Self::log`].
    #[must_use]
    pub fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(SHOWN_LOG_LINES);
        lines.get(from..).unwrap_or_default().join("\n")
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        let _ = self.kill();
        if std::env::var_os("SPANDREL_CHAOS_KEEP").is_some() {
            self.directory.disable_cleanup(true);
            self.disk.as_mut().map(SmallDisk::keep);
            eprintln!("kept: {}", self.directory.path().display());
        }
    }
}

async fn connect(addr: SocketAddr) -> anyhow::Result<Client> {
    let options = ClientOptions {
        addr: addr.to_string(),
        timeout_ms: CALL_TIMEOUT_MS,
        ..ClientOptions::default()
    };
    Ok(Client::connect(options).await?)
}

/// The program that a node with such a clock runs.
///
/// # Errors
/// When there is no such file.
pub fn program(clock: ClockKind) -> anyhow::Result<PathBuf> {
    match clock {
        ClockKind::System => binary(),
        ClockKind::Shifted => {
            let path = profile()?.join("examples/shifted_clock");
            ensure!(
                path.is_file(),
                "a node with a clock of its own runs {}, which does not exist: run \
                 `cargo build -p spandrel --example shifted_clock` first",
                path.display()
            );
            Ok(path)
        }
    }
}

/// `SPANDREL_BIN`, else `spandrel` of the profile that the running test was built with.
fn binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("SPANDREL_BIN") {
        let path = PathBuf::from(path);
        ensure!(
            path.is_file(),
            "SPANDREL_BIN names {}, which is no file",
            path.display()
        );
        return Ok(path);
    }
    let path = profile()?.join("spandrel");
    ensure!(
        path.is_file(),
        "the real program is run and {} does not exist: run `cargo build -p spandrel` first, \
         or name a program by SPANDREL_BIN",
        path.display()
    );
    Ok(path)
}

/// `target/<profile>`: a test's own file is `target/<profile>/deps/<name>`, the chaos runner's
/// `target/<profile>/spandrel-chaos`.
fn profile() -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let folder = test.parent().context("the test has no folder")?;
    let profile = match folder.parent() {
        Some(profile) if folder.ends_with("deps") => profile,
        _ => folder,
    };
    Ok(profile.to_owned())
}
