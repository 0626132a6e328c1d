//! What programs in pods have between themselves and DNS: glibc, musl, Go's resolver, systemd-resolved, dig, kdig, curl.
//!
//! Each case is played by a pod that is guarded and, as the control, by one that is not: there a denied name resolves.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use libtest_mimic::Trial;

use super::servers::{needs, run};
use crate::lab::agent::servers::certificate;
use crate::lab::agent::{Reach, Request, Script};
use crate::lab::clock::{now, wait_until};
use crate::lab::process::{fresh_prefix, guard, has, inside, spawn};
use crate::lab::world::{Family, Options, World};
use crate::lab::{Daemon, Topology, daemon, snapshot};

/// The kubelet's file for a pod (`dnsPolicy: ClusterFirst`).
const KUBELET: &str = "search payments.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n";
const V4: &str = "nameserver 198.18.0.10\n";
const V6: &str = "nameserver 2001:db8:18::a\n";

/// A look-up: of what, in which families, with what in resolv.conf; and what comes of it.
struct Case {
    what: &'static str,
    resolv_conf: &'static [&'static str],
    name: &'static str,
    family: &'static str,
    guarded: Expected,
    /// None: the same.
    unguarded: Option<Expected>,
}

/// What a program sees.
#[derive(Clone, Copy)]
enum Expected {
    /// These addresses, by their last number, `4` or `6`; and a connection to the first.
    Reaches(&'static [(Family, u8)]),
    /// So many addresses.
    Many(usize),
    /// None.
    Fails,
}

use Expected::{Fails, Many, Reaches};
use Family::{V4 as F4, V6 as F6};

const BOTH: Expected = Reaches(&[(F4, 101), (F6, 101)]);

#[rustfmt::skip]
const CASES: &[Case] = &[
    Case { what: "ipv4", resolv_conf: &[V4], name: "both.allowed.example", family: "4", guarded: Reaches(&[(F4, 101)]), unguarded: None },
    Case { what: "ipv6", resolv_conf: &[V4], name: "both.allowed.example", family: "6", guarded: Reaches(&[(F6, 101)]), unguarded: None },
    Case { what: "both families", resolv_conf: &[V4], name: "both.allowed.example", family: "any", guarded: BOTH, unguarded: None },
    Case { what: "a name with an ipv4 address alone", resolv_conf: &[V4], name: "four.allowed.example", family: "any", guarded: Reaches(&[(F4, 102)]), unguarded: None },
    Case { what: "a name with an ipv6 address alone", resolv_conf: &[V4], name: "six.allowed.example", family: "any", guarded: Reaches(&[(F6, 103)]), unguarded: None },
    Case { what: "a chain", resolv_conf: &[V4], name: "chain.allowed.example", family: "any", guarded: Reaches(&[(F4, 104)]), unguarded: None },
    Case { what: "letters", resolv_conf: &[V4], name: "bOtH.AlLoWeD.eXaMpLe", family: "any", guarded: BOTH, unguarded: None },
    Case { what: "no such name", resolv_conf: &[V4], name: "none.allowed.example", family: "any", guarded: Fails, unguarded: None },
    Case { what: "a denied name", resolv_conf: &[V4], name: "denied.example", family: "any", guarded: Fails, unguarded: Some(Reaches(&[(F4, 105)])) },
    Case { what: "a denied name in one family", resolv_conf: &[V4], name: "denied.example", family: "4", guarded: Fails, unguarded: Some(Reaches(&[(F4, 105)])) },
    Case { what: "a denied name and a search list", resolv_conf: &[KUBELET, V4], name: "denied.example", family: "any", guarded: Fails, unguarded: Some(Reaches(&[(F4, 105)])) },
    Case { what: "a search list", resolv_conf: &[KUBELET, V4], name: "both.allowed.example", family: "any", guarded: BOTH, unguarded: None },
    Case { what: "a search list in one family", resolv_conf: &[KUBELET, V4], name: "both.allowed.example", family: "4", guarded: Reaches(&[(F4, 101)]), unguarded: None },
    Case { what: "a search list and a final dot", resolv_conf: &[KUBELET, V4], name: "both.allowed.example.", family: "any", guarded: BOTH, unguarded: None },
    Case { what: "a denied suffix before the right one", resolv_conf: &["search svc.cluster.local allowed.example\n", V4], name: "both", family: "any", guarded: BOTH, unguarded: None },
    Case { what: "an own search suffix", resolv_conf: &["search allowed.example\n", V4], name: "both", family: "any", guarded: BOTH, unguarded: None },
    Case { what: "a server over ipv6", resolv_conf: &[V6], name: "both.allowed.example", family: "any", guarded: BOTH, unguarded: None },
    Case { what: "rotate", resolv_conf: &[V4, V6, "options rotate\n"], name: "both.allowed.example", family: "any", guarded: BOTH, unguarded: None },
    Case { what: "rotate and a denied name", resolv_conf: &[V4, V6, "options rotate\n"], name: "denied.example", family: "any", guarded: Fails, unguarded: Some(Reaches(&[(F4, 105)])) },
    Case { what: "single-request", resolv_conf: &[V4, "options single-request\n"], name: "both.allowed.example", family: "any", guarded: BOTH, unguarded: None },
    Case { what: "single-request-reopen", resolv_conf: &[V4, "options single-request-reopen\n"], name: "both.allowed.example", family: "any", guarded: BOTH, unguarded: None },
    Case { what: "edns0 and trust-ad", resolv_conf: &[V4, "options edns0 trust-ad\n"], name: "both.allowed.example", family: "any", guarded: BOTH, unguarded: None },
    Case { what: "edns0 and a denied name", resolv_conf: &[V4, "options edns0 trust-ad\n"], name: "denied.example", family: "any", guarded: Fails, unguarded: Some(Reaches(&[(F4, 105)])) },
    Case { what: "use-vc", resolv_conf: &[V4, "options use-vc\n"], name: "both.allowed.example", family: "any", guarded: BOTH, unguarded: None },
];

/// More than fits into a datagram.
const BIG: Case = Case {
    what: "a big answer",
    resolv_conf: &[V4],
    name: "big.allowed.example",
    family: "4",
    guarded: Many(100),
    unguarded: None,
};

/// How libraries differ.
struct Library {
    program: &'static str,
    over_tcp: bool,
    /// REFUSED below one search suffix means that the next is not tried.
    refused_ends_search: bool,
    /// Without an IPv4 address it asks for none (AI_ADDRCONFIG).
    knows_families: bool,
    fails_within_ms: u64,
}

const GLIBC: Library = Library {
    program: "look-glibc",
    over_tcp: true,
    refused_ends_search: true,
    knows_families: true,
    fails_within_ms: 1000,
};
/// Goes over to TCP from 1.2.4 on. REFUSED is no answer to it: it waits for another until its time is up, here 1 s.
const MUSL: Library = Library {
    program: "look-musl",
    over_tcp: false,
    refused_ends_search: true,
    knows_families: false,
    fails_within_ms: 2500,
};
const GO: Library = Library {
    program: "look-go",
    over_tcp: true,
    refused_ends_search: false,
    knows_families: false,
    fails_within_ms: 1000,
};

/// A server that says REFUSED below a search suffix: the search ends there.
const REFUSED_SUFFIX: Case = Case {
    what: "REFUSED below a search suffix",
    resolv_conf: &["search refused.allowed.example allowed.example\n", V4],
    name: "both",
    family: "4",
    guarded: Fails,
    unguarded: None,
};

/// Played last: the pods have no IPv4 address any more.
const WITHOUT_V4: Case = Case {
    what: "no ipv4",
    resolv_conf: &[KUBELET, V6],
    name: "both.allowed.example",
    family: "any",
    guarded: BOTH,
    unguarded: None,
};

pub fn trials() -> Vec<Trial> {
    let trial = |name: &str, play: fn()| {
        Trial::test(format!("peers::clients::{name}"), move || {
            play();
            Ok(())
        })
    };
    vec![
        trial("glibc_resolves_what_is_allowed_and_fails_at_once_where_it_is_not", || GLIBC.plays(&[])),
        trial("musl_resolves_what_is_allowed_and_fails_where_it_is_not", || MUSL.plays(&[])),
        trial("musl_fails_at_once_where_nxdomain_is_the_answer", || {
            let library = Library { refused_ends_search: false, fails_within_ms: 1000, ..MUSL };
            library.plays(&["--set", "dns.reject_response_code=nameError"]);
        }),
        trial("go_resolves_what_is_allowed_and_fails_at_once_where_it_is_not", || GO.plays(&[]))
            .with_ignored_flag(!has("go")),
        trial("systemd_resolved_resolves_what_is_allowed_and_says_no_where_it_is_not", resolved),
        trial("dig_and_kdig_hear_what_they_ask_for", tools),
        trial("kdig_is_served_over_tls_what_it_may_ask", over_tls),
        trial("curl_gets_its_page_and_fails_at_once_where_it_may_not", curl),
    ]
}

/// A world with names, what they stand for, and namegate.
struct Scene {
    /// Ends before the world.
    _daemon: Daemon,
    world: World,
}

impl Scene {
    #[track_caller]
    fn new(settings: &[&str]) -> Scene {
        let world = World::new(Options { topology: Topology::Routed });
        let name = |name: &str, addresses: &[(Family, u8)]| {
            let addresses: Vec<_> = addresses.iter().map(|(family, last)| family.outside(*last)).collect();
            world.outside.say_addresses(name, &addresses, 30);
            for address in addresses {
                world.outside.done(Request::ServeTcp { at: SocketAddr::new(address, 443) });
            }
        };
        name("both.allowed.example", &[(F4, 101), (F6, 101)]);
        name("four.allowed.example", &[(F4, 102)]);
        name("six.allowed.example", &[(F6, 103)]);
        name("denied.example", &[(F4, 105)]);
        name("x.other.example", &[(F4, 104)]);
        let record = |owner: &str, qtype: &str, data: &str| (owner.to_owned(), qtype.to_owned(), data.to_owned());
        let chain = [record("", "CNAME", "y.other.example."), record("y.other.example.", "CNAME", "x.other.example.")];
        let with_address = [&chain[..], &[record("x.other.example.", "A", "203.0.113.104")]].concat();
        let says = |name: &str, qtype: &str, script: Script| world.outside.say(name, qtype, script);
        says("chain.allowed.example", "A", Script { records: with_address, ttl: 30, ..Script::default() });
        says("chain.allowed.example", "AAAA", Script { records: chain.to_vec(), ttl: 30, ..Script::default() });
        let many = (0..100).map(|last| record("", "A", &format!("198.19.0.{last}"))).collect();
        says("big.allowed.example", "A", Script { records: many, ttl: 30, truncate: true, ..Script::default() });
        for qtype in ["A", "AAAA"] {
            let refuses = Script { rcode: "REFUSED".into(), ..Script::default() };
            says("*.refused.allowed.example", qtype, refuses);
        }
        let policy = snapshot::policy(
            "payment-processor",
            "  - toFQDNs: [{matchPattern: \"**.allowed.example\"}]\n    \
             toPorts: [{ports: [{port: \"443\", protocol: TCP}]}]\n",
        );
        let policy = policy.replace("{matchPattern: \"*\"}", "{matchPattern: \"**.allowed.example\"}");
        snapshot::with_policy(&world.directory.join("snapshot"), &policy);
        let daemon = Daemon::start(&world, settings);
        Scene { _daemon: daemon, world }
    }

    /// What a program writes in a pod that has this resolv.conf, and how long it ran.
    #[track_caller]
    fn run(&self, part: &str, resolv_conf: &[&str], line: &[&str]) -> String {
        let text = resolv_conf.concat() + "options timeout:1 attempts:2\n";
        fs::write(self.world.directory.join("resolv.conf"), text).expect("a file can be written");
        self.world.run_in_pod(part, line).1
    }

    /// What is wrong with a case, in both pods.
    #[track_caller]
    fn play(&self, library: &Library, case: &Case) -> Vec<String> {
        let program = programs().join(library.program);
        let program = program.to_str().expect("a path in UTF-8");
        let mut wrong = Vec::new();
        for (part, expected) in [("pay", case.guarded), ("rep", case.unguarded.unwrap_or(case.guarded))] {
            let seen = self.run(part, case.resolv_conf, &[program, case.name, case.family, "443"]);
            if !expected.is(&seen, library) {
                wrong.push(format!("{}, {part}: {}", case.what, seen.replace('\n', "; ")));
            }
        }
        wrong
    }

    fn remove_v4(&self) {
        for part in ["pay", "rep"] {
            self.world.must(part, "ip -4 address flush dev eth0");
        }
    }
}

impl Expected {
    fn is(self, seen: &str, library: &Library) -> bool {
        let of = |key: &str| seen.lines().filter_map(|line| line.strip_prefix(key)).map(str::trim).collect::<Vec<_>>();
        let (mut addresses, reached) = (of("address "), seen.lines().any(|line| line == "reached"));
        let took: u64 = of("ms ").first().and_then(|ms| ms.parse().ok()).unwrap_or(u64::MAX);
        addresses.sort_unstable();
        match self {
            Reaches(wanted) => {
                let mut wanted: Vec<String> = wanted.iter().map(|(f, last)| f.outside(*last).to_string()).collect();
                wanted.sort_unstable();
                // A name that is found goes on to its address with the first packet.
                addresses == wanted && reached && !seen.contains("not reached") && took < 1000
            }
            Many(count) => addresses.len() == count && took < 1000,
            Fails => addresses.is_empty() && !of("error").is_empty() && took < library.fails_within_ms,
        }
    }
}

impl Library {
    /// All cases.
    #[track_caller]
    fn plays(&self, settings: &[&str]) {
        let scene = Scene::new(settings);
        let mut wrong: Vec<String> = CASES.iter().flat_map(|case| scene.play(self, case)).collect();
        if self.over_tcp {
            wrong.extend(scene.play(self, &BIG));
        }
        if self.refused_ends_search {
            wrong.extend(scene.play(self, &REFUSED_SUFFIX));
        }
        scene.remove_v4();
        let guarded = if self.knows_families { Reaches(&[(F6, 101)]) } else { WITHOUT_V4.guarded };
        wrong.extend(scene.play(self, &Case { guarded, ..WITHOUT_V4 }));
        drop(scene); // its log is long
        assert!(wrong.is_empty(), "{}:\n{}", self.program, wrong.join("\n"));
    }
}

fn resolved() {
    const STUB: &[&str] = &["nameserver 127.0.0.53\n", "options edns0 trust-ad\n"];
    let scene = Scene::new(&[]);
    let mut running: Vec<Resolved> = ["pay", "rep"].map(|part| Resolved::start(&scene, part)).into();
    let mut wrong = Vec::new();
    for case in CASES.iter().filter(|case| case.resolv_conf == [V4]).chain([&BIG]) {
        let case = Case { resolv_conf: STUB, ..*case };
        wrong.extend(scene.play(&GLIBC, &case));
    }
    let log = running.iter_mut().map(Resolved::log).collect::<Vec<_>>().join("\n");
    drop((running, scene));
    assert!(wrong.is_empty(), "systemd-resolved:\n{}\n{log}", wrong.join("\n"));
}

/// systemd-resolved in a pod, with a mount namespace of its own: its /run, its configuration, and the user it becomes.
/// Nothing speaks D-Bus to it; it waits for a bus and goes on without.
struct Resolved {
    child: Child,
    log: PathBuf,
}

impl Resolved {
    #[track_caller]
    fn start(scene: &Scene, part: &str) -> Resolved {
        const SCRIPT: &str = "mount -t tmpfs tmpfs /run\n\
            mkdir -p /run/systemd/resolve /run/etc/systemd\n\
            (grep -v '^systemd-resolve:' /etc/passwd; echo 'systemd-resolve:x:991:991::/:/bin/false') > /run/etc/passwd\n\
            (grep -v '^systemd-resolve:' /etc/group; echo 'systemd-resolve:x:991:') > /run/etc/group\n\
            printf '[Resolve]\\nDNS=198.18.0.10\\nDomains=~.\\nDNSSEC=no\\nLLMNR=no\\nMulticastDNS=no\\nCache=no\\n' \
              > /run/etc/systemd/resolved.conf\n\
            chown 991:991 /run/systemd/resolve\n\
            for file in passwd group systemd; do mount --bind /run/etc/$file /etc/$file; done\n\
            exec \"$0\"\n";
        let (program, libraries) = resolved_program();
        let path = scene.world.directory.join(format!("resolved-{part}.log"));
        let log = fs::File::create(&path).expect("a file can be made");
        let mut command = inside(&scene.world.namespace(part), "unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", SCRIPT]).arg(program);
        command.env("SYSTEMD_LOG_LEVEL", "info").env("SYSTEMD_LOG_TARGET", "console").env("LD_LIBRARY_PATH", libraries);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = spawn(command).expect("unshare starts");
        let mut resolved = Resolved { child, log: path };
        let up = wait_until(Duration::from_secs(10), || {
            let said =
                scene.run(part, &[], &["dig", "@127.0.0.53", "both.allowed.example", "+short", "+time=1", "+tries=1"]);
            said.trim() == "203.0.113.101"
        });
        assert!(up, "systemd-resolved does not answer in {part}\n{}", resolved.log());
        resolved
    }

    fn log(&mut self) -> String {
        let state = self.child.try_wait();
        format!("{state:?}\n{}", fs::read_to_string(&self.log).unwrap_or_default())
    }
}

impl Drop for Resolved {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// systemd-resolved and where its libraries are: the machine's own, or unpacked beside the build, for an installed one
/// takes over the machine's resolv.conf.
#[track_caller]
fn resolved_program() -> (PathBuf, PathBuf) {
    let own = Path::new("/usr/lib/systemd/systemd-resolved");
    if own.is_file() {
        return (own.into(), PathBuf::new());
    }
    let program = daemon::program();
    let targets = program.ancestors().map(|directory| directory.join("lab/resolved"));
    let unpacked = targets.into_iter().find(|directory| directory.is_dir());
    let unpacked = unpacked.expect("systemd-resolved is neither installed nor unpacked; `make deps-peers` unpacks it");
    let libraries = fs::read_dir(unpacked.join("usr/lib")).into_iter().flatten().flatten();
    let libraries = libraries.map(|entry| entry.path().join("systemd")).find(|path| path.is_dir());
    let program = ["lib", "usr/lib"].map(|lib| unpacked.join(lib).join("systemd/systemd-resolved"));
    (
        program.into_iter().find(|path| path.is_file()).expect("the package has the program"),
        libraries.expect("the package has the library"),
    )
}

fn tools() {
    needs("dig");
    needs("kdig");
    let scene = Scene::new(&[]);
    let mut wrong = Vec::new();
    let mut sees = |line: &str, guarded: &[&str], unguarded: &[&str]| {
        for (part, wanted) in [("pay", guarded), ("rep", unguarded)] {
            let started = now();
            let seen = scene.run(part, &[V4], &line.split_whitespace().collect::<Vec<_>>());
            if !wanted.iter().all(|text| seen.contains(text)) || started.elapsed() > Duration::from_secs(2) {
                wrong.push(format!("{line}, {part}: wanted {wanted:?}, seen in {:?}:\n{seen}", started.elapsed()));
            }
        }
    };
    let mut same = |line: &str, wanted: &[&str]| sees(line, wanted, wanted);
    for tool in ["dig", "kdig"] {
        for how in
            ["", "+tcp", "+dnssec", "+noedns", "+bufsize=512", "+nocookie", "@2001:db8:18::a", "+tcp @2001:db8:18::a"]
        {
            same(&format!("{tool} {how} both.allowed.example A"), &["NOERROR", "203.0.113.101"]);
            same(&format!("{tool} {how} both.allowed.example AAAA"), &["NOERROR", "2001:db8:2::101"]);
        }
        same(&format!("{tool} none.allowed.example"), &["NXDOMAIN"]);
        same(&format!("{tool} chain.allowed.example A"), &["203.0.113.104", "x.other.example."]);
        // Each falls back to TCP by itself.
        same(&format!("{tool} big.allowed.example A"), &["198.19.0.0", "198.19.0.99"]);
        same(&format!("{tool} +noedns big.allowed.example A"), &["198.19.0.0", "198.19.0.99"]);
    }
    same("dig +ignore big.allowed.example A", &[" tc ", "ANSWER: 0"]);
    same("dig +cookie=0123456789abcdef both.allowed.example A", &["203.0.113.101"]);
    same("dig +subnet=203.0.113.0/24 +nsid both.allowed.example A", &["203.0.113.101"]);
    same("dig +cdflag +adflag both.allowed.example A", &["203.0.113.101"]);
    for tool in ["dig", "kdig"] {
        for how in ["+edns", "+edns +tcp"] {
            let line = format!("{tool} {how} denied.example A");
            sees(&line, &["REFUSED", "payments/payment-processor", "ANSWER: 0"], &["NOERROR", "203.0.113.105"]);
        }
        sees(&format!("{tool} both.allowed.example ANY +notcp"), &["REFUSED"], &["NOERROR"]);
    }
    drop(scene);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The listener for DNS over TLS, which stands for the resolver that is asked.
fn over_tls() {
    const NAME: &str = "kube-dns.lab.example";
    needs("kdig");
    let made = certificate(vec![NAME.to_owned()]).expect("a certificate can be made");
    let directory = guard::directory(&fresh_prefix());
    fs::create_dir_all(&directory).expect("a directory can be made");
    let file = |name: &str, text: String| {
        let path = directory.join(name);
        fs::write(&path, text).expect("a file can be written");
        path.to_str().expect("a path in UTF-8").to_owned()
    };
    let authority = file("authority.pem", made.authority);
    let certificate = format!("dns.tls_certificate={}", file("tls.crt", made.leaf.pem()));
    let key = format!("dns.tls_key={}", file("tls.key", made.key.serialize_pem()));
    let scene = Scene::new(&["--set", "dns.tls_port=15853", "--set", &certificate, "--set", &key]);
    let asks = |more: &str| {
        let line = format!("kdig +tls +edns +tls-ca={authority} +tls-hostname={NAME} {more}");
        scene.run("pay", &[V4], &line.split_whitespace().collect::<Vec<_>>())
    };
    let mut wrong = Vec::new();
    for (more, wanted) in [
        ("both.allowed.example A", &["NOERROR", "203.0.113.101"][..]),
        ("@2001:db8:18::a both.allowed.example AAAA", &["NOERROR", "2001:db8:2::101"]),
        ("+keepopen both.allowed.example A four.allowed.example A", &["203.0.113.101", "203.0.113.102"]),
        ("big.allowed.example A", &["198.19.0.0", "198.19.0.99"]),
        ("none.allowed.example A", &["NXDOMAIN"]),
        ("denied.example A", &["REFUSED", "payments/payment-processor", "ANSWER: 0"]),
        // Another name than the certificate's: kdig must not go on, or it would have checked nothing.
        ("+tls-hostname=other.example both.allowed.example A", &["certificate"]),
    ] {
        let seen = asks(more);
        if !wanted.iter().all(|text| seen.contains(text)) {
            wrong.push(format!("{more}: wanted {wanted:?}, seen:\n{seen}"));
        }
    }
    // What was learned over TLS opens as well.
    let reach = scene.world.pay.connect(SocketAddr::new(F4.outside(102), 443));
    assert_eq!(reach, Reach::Reached);
    drop(scene);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn curl() {
    let scene = Scene::new(&[]);
    let outside = &scene.world.outside;
    let authority = scene.world.directory.join("authority.pem");
    let authority = authority.to_str().expect("a path in UTF-8").to_owned();
    for (name, last) in [("page.allowed.example", 110), ("page.denied.example", 111)] {
        outside.say_addresses(name, &[F4.outside(last), F6.outside(last)], 30);
    }
    let names = vec!["page.allowed.example".to_owned(), "page.denied.example".to_owned()];
    let file = |last: u8, family: Family| format!("{authority}-{last}-{family:?}");
    for last in [110, 111] {
        for family in [F4, F6] {
            let at = SocketAddr::new(family.outside(last), 443);
            outside.done(Request::ServeTls { at, names: names.clone(), authority: file(last, family) });
        }
    }
    let get = |part: &str, name: &str, last: u8, family: Family| {
        let url = format!("https://{name}/");
        let (version, authority) = (family.pick("-4", "-6"), file(last, family));
        let line = ["curl", version, "-sS", "--max-time", "5", "--cacert", &authority, &url];
        let started = now();
        (scene.run(part, &[KUBELET, V4], &line), started.elapsed())
    };
    for family in [F4, F6] {
        for part in ["pay", "rep"] {
            let (seen, _) = get(part, "page.allowed.example", 110, family);
            assert!(seen.contains("hello from"), "{part} over {family:?}: {seen}");
        }
        let (seen, _) = get("rep", "page.denied.example", 111, family);
        assert!(seen.contains("hello from"), "the control over {family:?}: {seen}");
        let (seen, took) = get("pay", "page.denied.example", 111, family);
        assert!(seen.contains("Could not resolve host"), "{family:?}: {seen}");
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
}

/// The directory of the programs in `clients/`, compiled once a run.
#[track_caller]
fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let directory = guard::directory(&fresh_prefix());
        fs::create_dir_all(&directory).expect("a directory can be made");
        let source = |name: &str| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/peers/clients").join(name);
            path.to_str().expect("a path in UTF-8").to_owned()
        };
        let made = |name: &str| directory.join(name).to_str().expect("a path in UTF-8").to_owned();
        run("cc", &["-O1", "-Wall", "-Werror", "-o", &made("look-glibc"), &source("look.c")]);
        run("musl-gcc", &["-static", "-O1", "-Wall", "-Werror", "-o", &made("look-musl"), &source("look.c")]);
        if has("go") {
            let mut go = Command::new("go");
            go.args(["build", "-o", &made("look-go"), &source("look.go")]);
            go.envs([("CGO_ENABLED", "0"), ("GO111MODULE", "off"), ("GOTOOLCHAIN", "local"), ("GOFLAGS", "")]);
            let output = crate::lab::process::output(go).expect("go starts");
            assert!(output.status.success(), "go: {}", String::from_utf8_lossy(&output.stderr));
        }
        directory
    })
}
