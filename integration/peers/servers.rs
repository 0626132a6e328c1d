//! Name servers as Debian packages them, outside of a world: each in the foreground, with a configuration of its own.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::zone;
use crate::lab::agent::servers::certificate;
use crate::lab::clock::wait_until;
use crate::lab::process::{has, inside, output, spawn};
use crate::lab::world::{Family, World};

/// Their addresses end in these numbers, on port 53.
pub const NSD: u8 = 60;
pub const KNOT: u8 = 61;
pub const UNBOUND: u8 = 62;
pub const DNSDIST: u8 = 63;

/// The name in dnsdist's certificate.
pub const CERTIFICATE: &str = "dns.peers.example";

/// Running servers. They end when dropped.
pub struct Servers {
    directory: PathBuf,
    namespace: String,
    children: Vec<Child>,
}

impl Servers {
    /// Makes and signs the zones; nobody serves them yet.
    #[track_caller]
    pub fn new(world: &World) -> Servers {
        let directory = world.directory.join("peers");
        for sub in ["plain", "signed", "keys", "run"] {
            fs::create_dir_all(directory.join(sub)).expect("a directory can be made");
        }
        let servers = Servers { directory, namespace: world.namespace("outside"), children: Vec::new() };
        servers.sign();
        servers
    }

    /// nsd with the signed zones.
    #[track_caller]
    pub fn nsd(&mut self, world: &World) {
        let at = self.directory.display();
        let config = format!(
            "server:\n  {}  server-count: 1\n  username: \"\"\n  zonesdir: {at}/signed\n  database: \"\"\n  pidfile: \"\"\n  \
             xfrdfile: {at}/run/xfrd\n  xfrdir: {at}/run\n  zonelistfile: {at}/run/zones\n  rrl-ratelimit: 0\n  tcp-count: 1000\n\
             remote-control:\n  control-enable: no\n\
             zone:\n  name: {ORIGIN}\n  zonefile: {ORIGIN}.zone\nzone:\n  name: {HASHED}\n  zonefile: {HASHED}.zone\n",
            addresses(NSD).map(|address| format!("ip-address: {address}@53\n  ")).concat(),
            ORIGIN = zone::ORIGIN,
            HASHED = zone::HASHED,
        );
        let config = self.write("nsd.conf", &config);
        self.start("nsd", &["-d", "-c", &config]);
        self.wait_for(world, "nsd", NSD);
    }

    /// knotd with the signed zones.
    #[track_caller]
    pub fn knot(&mut self, world: &World) {
        let [v4, v6] = addresses(KNOT);
        let at = self.directory.display();
        let zones = [zone::ORIGIN, zone::HASHED].map(|name| format!("  - domain: {name}\n    file: {name}.zone\n"));
        let config = format!(
            "server:\n    rundir: {at}/run\n    listen: [{v4}@53, {v6}@53]\n    udp-workers: 1\n    tcp-workers: 1\n    \
             background-workers: 1\n    tcp-max-clients: 1000\n\
             database:\n    storage: {at}/keys\n\
             log:\n  - target: stderr\n    any: warning\n\
             template:\n  - id: default\n    storage: {at}/signed\n    zonefile-sync: -1\n    journal-content: none\n\
             zone:\n{}",
            zones.concat()
        );
        let config = self.write("knotd.conf", &config);
        self.start("knotd", &["-c", &config]);
        self.wait_for(world, "knotd", KNOT);
    }

    /// unbound, which resolves the zones from nsd and validates them.
    #[track_caller]
    pub fn unbound(&mut self, world: &World) {
        let at = self.directory.display();
        let nsd = addresses(NSD)[0];
        let stubs = [zone::ORIGIN, zone::HASHED]
            .map(|name| format!("stub-zone:\n  name: {name}\n  stub-addr: {nsd}@53\n  stub-no-cache: no\n"));
        let config = format!(
            "server:\n  {}  access-control: 0.0.0.0/0 allow\n  access-control: ::/0 allow\n  username: \"\"\n  chroot: \"\"\n  \
             directory: {at}/run\n  pidfile: \"\"\n  use-syslog: no\n  logfile: \"\"\n  module-config: \"validator iterator\"\n  \
             trust-anchor-file: {at}/anchors\n  num-threads: 1\n  incoming-num-tcp: 200\n  outgoing-num-tcp: 50\n  \
             root-hints: \"\"\n  do-not-query-localhost: no\n  rrset-roundrobin: yes\n  minimal-responses: yes\n\
             remote-control:\n  control-enable: no\n{}",
            addresses(UNBOUND).map(|address| format!("interface: {address}\n  ")).concat(),
            stubs.concat()
        );
        let config = self.write("unbound.conf", &config);
        self.start("unbound", &["-d", "-c", &config]);
        self.wait_for(world, "unbound", UNBOUND);
    }

    /// dnsdist in front of nsd: plain, over TLS and over HTTPS with a certificate for [`CERTIFICATE`]. The file of the
    /// authority that signed it.
    ///
    /// Without `maxInFlight` dnsdist 1.7 stops for two seconds when two queries come in one TLS record.
    #[track_caller]
    pub fn dnsdist(&mut self, world: &World) -> String {
        let made = certificate(vec![CERTIFICATE.to_owned()]).expect("a certificate can be made");
        let authority = self.write("authority.pem", &made.authority);
        let (leaf, key) = (self.write("leaf.pem", &made.leaf.pem()), self.write("key.pem", &made.key.serialize_pem()));
        let ([v4, v6], [nsd, _]) = (addresses(DNSDIST), addresses(NSD));
        let config = format!(
            "setACL({{'0.0.0.0/0', '::/0'}})\nsetSecurityPollSuffix('')\n\
             newServer({{address='{nsd}:53', healthCheckMode='up', tcpFastOpen=false}})\n\
             setLocal('{v4}:53')\naddLocal('[{v6}]:53')\n\
             addTLSLocal('{v4}:853', '{leaf}', '{key}', {{maxInFlight=1000}})\n\
             addDOHLocal('{v4}:443', '{leaf}', '{key}', '/dns-query')\n"
        );
        let config = self.write("dnsdist.conf", &config);
        self.start("dnsdist", &["--supervised", "--disable-syslog", "-C", &config]);
        self.wait_for(world, "dnsdist", DNSDIST);
        authority
    }

    /// Signs the zones with keys of its own, and writes what validators trust.
    #[track_caller]
    fn sign(&self) {
        let at = self.directory.display();
        let mut policies = String::new();
        let mut zones = String::new();
        for (name, text, nsec3) in [(zone::ORIGIN, zone::text(), "off"), (zone::HASHED, zone::hashed_text(), "on")] {
            fs::write(self.directory.join(format!("plain/{name}.zone")), text).expect("a file can be written");
            // The greatest TTL would make for a lifetime of 68 years, so the times are said.
            policies += &format!(
                "  - id: nsec3-{nsec3}\n    algorithm: ecdsap256sha256\n    single-type-signing: on\n    nsec3: {nsec3}\n    \
                 rrsig-lifetime: 30d\n    rrsig-refresh: 2d\n    zone-max-ttl: 1d\n    cds-cdnskey-publish: none\n"
            );
            zones += &format!("  - domain: {name}\n    file: {name}.zone\n    dnssec-policy: nsec3-{nsec3}\n");
        }
        let config = format!(
            "server:\n    rundir: {at}/run\ndatabase:\n    storage: {at}/keys\npolicy:\n{policies}\
             template:\n  - id: default\n    storage: {at}/plain\n    dnssec-signing: on\nzone:\n{zones}"
        );
        let config = self.write("sign.conf", &config);
        let mut anchors = String::new();
        for name in [zone::ORIGIN, zone::HASHED] {
            run("kzonesign", &["-c", &config, "-o", &format!("{at}/signed"), name]);
            // knot writes a mnemonic that it can't read.
            let path = self.directory.join(format!("signed/{name}.zone"));
            let text = fs::read_to_string(&path).expect("the zone was signed").replace("\tNULL", "\tTYPE10");
            fs::write(&path, text.replace(" NULL ", " TYPE10 ")).expect("a file can be written");
            anchors += &run("keymgr", &["-c", &config, name, "ds"]);
        }
        self.write("anchors", &anchors);
    }

    /// Writes a file in the servers' directory; its path.
    #[track_caller]
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.directory.join(name);
        fs::write(&path, text).expect("a file can be written");
        path.to_str().expect("a path in UTF-8").to_owned()
    }

    #[track_caller]
    pub fn start(&mut self, program: &str, arguments: &[&str]) {
        needs(program);
        let log = fs::File::create(self.log_of(program)).expect("a file can be made");
        let mut command = inside(&self.namespace, program);
        command.args(arguments).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a descriptor can be copied")).stderr(log);
        self.children.push(spawn(command).unwrap_or_else(|error| panic!("{program}: {error}")));
    }

    /// Waits until it answers on both addresses.
    #[track_caller]
    pub fn wait_for(&self, world: &World, program: &str, last: u8) {
        for address in addresses(last) {
            let mut seen = Default::default();
            let up = wait_until(Duration::from_secs(10), || {
                // A port that is closed says so at once, a server that starts may be silent for a moment.
                seen = world.outside.ask_as(crate::lab::agent::Question {
                    server: SocketAddr::new(address, 53),
                    name: format!("ready.{}.", zone::ORIGIN),
                    qtype: "A".into(),
                    tcp: false,
                    tls: None,
                    edns: Some(1232),
                    within_ms: 300,
                });
                seen.rcode == "NOERROR" && seen.addresses.len() == 1
            });
            let log = || fs::read_to_string(self.log_of(program)).unwrap_or_default();
            assert!(up, "{program} does not answer at {address}: {seen:?}\n{}", log());
        }
    }

    fn log_of(&self, program: &str) -> PathBuf {
        self.directory.join(format!("{program}.log"))
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Both addresses of a server outside.
pub fn addresses(last: u8) -> [IpAddr; 2] {
    [Family::V4.outside(last), Family::V6.outside(last)]
}

/// Panics unless a program is installed.
#[track_caller]
pub fn needs(program: &str) {
    assert!(has(program), "{program} is not installed; `make deps-peers` installs it");
}

/// Runs a program that is no server to its end; what it wrote.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) -> String {
    needs(program);
    let mut command = Command::new(program);
    command.args(arguments);
    let output = output(command).unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
