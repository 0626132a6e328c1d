//! etcd, an API server and kubectl.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::collector::eventually;

/// Who may do what: token, user, number, groups.
const TOKENS: &str = "admin,admin,1,\"system:masters\"\ncollector,collector,2\nwithout,without,3\n";

/// A cluster without nodes.
pub struct Cluster {
    programs: PathBuf,
    folder: tempfile::TempDir,
    etcd: Child,
    etcd_port: u16,
    server: Option<Child>,
    port: u16,
    authority: String,
    /// In which version it has blocks of addresses.
    pub group_version: String,
}

impl Cluster {
    /// Starts one, without Cilium's kinds.
    pub fn start() -> Cluster {
        let programs =
            PathBuf::from(std::env::var_os("CLUSTER_PROGRAMS").expect("tests without it are skipped")).join("bin");
        let folder = tempfile::tempdir().expect("a directory");
        let [etcd_port, peers, port] = [free_port(), free_port(), free_port()];
        let (client, peer) = (format!("http://127.0.0.1:{etcd_port}"), format!("http://127.0.0.1:{peers}"));
        let etcd = dies_with_us(&mut Command::new(programs.join("etcd")))
            .arg("--data-dir")
            .arg(folder.path().join("etcd"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--log-level", "error"])
            .stdin(Stdio::null())
            .stdout(log(folder.path(), "etcd"))
            .stderr(log(folder.path(), "etcd"))
            .spawn()
            .expect("etcd starts");
        let authority = certificates(folder.path());
        fs::write(folder.path().join("tokens.csv"), TOKENS).expect("written");
        let mut cluster = Cluster {
            programs,
            folder,
            etcd,
            etcd_port,
            server: None,
            port,
            authority,
            group_version: "v2alpha1".to_owned(),
        };
        cluster.start_api_server();
        cluster.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
        cluster.apply(include_str!("role.yaml"));
        cluster
    }

    /// Starts the API server, and waits until it is ready.
    pub fn start_api_server(&mut self) {
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        let server = dies_with_us(&mut Command::new(self.programs.join("kube-apiserver")))
            .args(["--bind-address", "127.0.0.1", "--secure-port", &self.port.to_string()])
            .args(["--etcd-servers", &format!("http://127.0.0.1:{}", self.etcd_port)])
            .args(["--tls-cert-file", &at("server.crt"), "--tls-private-key-file", &at("server.key")])
            .args([
                "--service-account-key-file",
                &at("accounts.pub"),
                "--service-account-signing-key-file",
                &at("accounts.key"),
            ])
            .args(["--service-account-issuer", "https://kubernetes.default.svc"])
            .args(["--token-auth-file", &at("tokens.csv"), "--authorization-mode", "RBAC"])
            .args([
                "--service-cluster-ip-range",
                "198.18.0.0/24,2001:db8:18::/112",
                "--advertise-address",
                "203.0.113.1",
            ])
            .args(["--disable-admission-plugins", "ServiceAccount", "--etcd-compaction-interval", "0"])
            .args(["--cert-dir", &at("made")])
            .stdin(Stdio::null())
            .stdout(log(self.folder.path(), "kube-apiserver"))
            .stderr(log(self.folder.path(), "kube-apiserver"))
            .spawn()
            .expect("kube-apiserver starts");
        self.server = Some(server);
        eventually("an API server", || self.try_kubectl(&["get", "--raw", "/readyz"], None).is_ok());
    }

    /// Whether there is an API server.
    pub fn is_running(&self) -> bool {
        self.server.is_some()
    }

    /// Kills it: no goodbye.
    pub fn kill_api_server(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().expect("it runs");
            server.wait().expect("a child");
        }
    }

    /// Makes etcd forget everything but the present.
    pub fn compact(&self) {
        let ask = |path: &str, body: &str| {
            let mut stream = TcpStream::connect(("127.0.0.1", self.etcd_port)).expect("etcd listens");
            let length = body.len();
            let head =
                format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
            stream.write_all((head + body).as_bytes()).expect("sent");
            std::io::read_to_string(stream).expect("an answer")
        };
        let answer = ask("/v3/kv/range", r#"{"key":"AA==","limit":1}"#);
        let revision =
            answer.split(r#""revision":""#).nth(1).and_then(|rest| rest.split('"').next()).expect("a revision");
        let answer = ask("/v3/kv/compaction", &format!(r#"{{"revision":"{revision}","physical":true}}"#));
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// Brings back what an earlier test may have left out: the server, Cilium's kinds, a policy.
    pub fn prepare(&mut self, policy: &str) {
        if self.server.is_none() {
            self.start_api_server();
        }
        self.apply_crds();
        self.apply(policy);
    }

    /// Cilium's kinds: those of the chart, if it has some.
    pub fn apply_crds(&mut self) {
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("helm/namegate/files/crds");
        if chart.is_dir() {
            self.kubectl(&["apply", "--server-side", "-f", chart.to_str().expect("text")]);
        } else {
            self.apply(include_str!("crds.yaml"));
        }
        self.are_served();
    }

    /// Waits until Cilium's kinds are there.
    pub fn are_served(&mut self) {
        let versions = ["crd/ciliumnetworkpolicies.cilium.io", "crd/ciliumcidrgroups.cilium.io"];
        for crd in versions {
            // Fails also when there is no condition yet.
            let wait = ["wait", "--for=condition=Established", "--timeout=5s", crd];
            eventually("a kind", || self.try_kubectl(&wait, None).is_ok());
        }
        let stored = ["get", versions[1], "-o", "jsonpath={.spec.versions[?(@.storage==true)].name}"];
        self.group_version = self.kubectl(&stored);
    }

    /// `kubectl apply` of this text.
    #[track_caller]
    pub fn apply(&self, text: &str) {
        // A server that has just come back may not have all parts ready.
        eventually("kubectl apply", || match self.try_kubectl(&["apply", "-f", "-"], Some(text)) {
            Ok(_) => true,
            Err(error) => {
                eprintln!("kubectl apply: {error}");
                false
            }
        });
    }

    /// What kubectl says.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments, None).unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    fn try_kubectl(&self, arguments: &[&str], input: Option<&str>) -> Result<String, String> {
        let mut child = Command::new(self.programs.join("kubectl"))
            .arg("--kubeconfig")
            .arg(self.kubeconfig("admin"))
            .args(["--request-timeout", "10s", "--cache-dir"])
            .arg(self.folder.path().join("cache"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        let written = stdin.write_all(input.unwrap_or_default().as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("a child");
        written.map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }

    /// The kubeconfig of a user.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.kubeconfig_of(user, user)
    }

    /// The kubeconfig of whoever has this token.
    pub fn kubeconfig_of(&self, user: &str, token: &str) -> PathBuf {
        let path = self.folder.path().join(format!("{user}.kubeconfig"));
        let text = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.port),
                "certificate-authority": self.authority,
            }}],
            "users": [{"name": "c", "user": {"token": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        });
        fs::write(&path, text.to_string()).expect("written");
        path
    }

    /// A directory of its own.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Ends everything; its logs are printed if it has to be looked into.
    pub fn stop(&mut self) {
        self.kill_api_server();
        let _ = self.etcd.kill();
        let _ = self.etcd.wait();
        if std::env::var_os("CLUSTER_LOGS").is_some() {
            for name in ["etcd", "kube-apiserver"] {
                let text = fs::read_to_string(self.folder.path().join(format!("{name}.log"))).unwrap_or_default();
                eprintln!("{name}:\n{text}");
            }
        }
    }
}

/// No test leaves a server behind, however it ends.
pub fn dies_with_us(command: &mut Command) -> &mut Command {
    // SAFETY: prctl(2) is a system call and nothing else.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        })
    }
}

fn log(folder: &Path, name: &str) -> Stdio {
    let path = folder.join(format!("{name}.log"));
    fs::File::options().create(true).append(true).open(path).expect("a log").into()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

/// An authority, the server's certificate, and the key of service accounts. The authority's path.
fn certificates(folder: &Path) -> String {
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let authority_key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).expect("an authority");
    let issuer = Issuer::new(params, authority_key);
    let key = KeyPair::generate().expect("a key");
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let certificate =
        CertificateParams::new(names).expect("parameters").signed_by(&key, &issuer).expect("a certificate");
    write("server.crt", certificate.pem());
    write("server.key", key.serialize_pem());
    let accounts = KeyPair::generate().expect("a key");
    write("accounts.key", accounts.serialize_pem());
    write("accounts.pub", accounts.public_key_pem());
    write("authority.crt", authority.pem())
}

/// How long anything may take here: a server starts in some seconds, or a minute on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);
