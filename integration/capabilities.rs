//! namegate as the chart runs it: as the user and with the capabilities that `helm/namegate` gives its containers and
//! nothing beside, without new privileges, on a root folder that can't be written; volumes are where the lab has them.
//!
//! The controls take one capability away: then it does not start, and says which is missing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};

use crate::discovery::yard::{BLUE, Cni, LIMIT, NAME, RED, Yard};
use crate::lab::agent::Reach;
use crate::lab::process::{has, inside, output};
use crate::lab::world::{FAMILIES, Family};
use crate::lab::{Daemon, Topology, World, clock, daemon, snapshot};
use crate::sidecar::{ALLOWED, DENIED, EXTRA, LABELS, Pod};

/// How long it may take to say that it can't start.
const REFUSAL: Duration = Duration::from_secs(10);

pub fn trials() -> Vec<Trial> {
    let trial = |name: &str, play: fn() -> Result<(), Failed>| Trial::test(format!("capabilities::{name}"), play);
    vec![
        trial("a_node_runs_with_what_the_chart_gives_it_and_no_less", node),
        trial("a_sidecar_runs_with_what_the_chart_gives_it_and_no_less", sidecar),
    ]
}

/// What the chart says of a container's process.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Security {
    uid: u32,
    /// Without CAP_, in lower case; all others are dropped.
    capabilities: Vec<String>,
    no_new_privileges: bool,
    read_only_root: bool,
}

impl Security {
    /// From a container's text, as Helm renders it, as it stands in the template, or as CEL.
    #[track_caller]
    fn read(text: &str) -> Security {
        let after = |key: &str| text.split_once(key).map(|(_, rest)| rest.trim_start());
        let says = |key: &str, value: &str| after(key).is_some_and(|rest| rest.starts_with(value));
        let dropped = after("drop:").and_then(|rest| rest.split(']').next()).unwrap_or_default();
        assert_eq!(dropped.trim_matches(['[', '"']), "ALL", "not all capabilities are dropped: {text}");
        let add = after(" add:").or_else(|| after("{add:")).expect("a list of capabilities");
        let capabilities = match add.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            Some(list) => list.split(',').map(|word| word.trim().trim_matches('"').to_ascii_lowercase()).collect(),
            None => {
                let items = add.lines().map_while(|line| line.trim().strip_prefix("- "));
                items.map(str::to_ascii_lowercase).collect()
            }
        };
        let uid = after("runAsUser:").and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
        Security {
            uid: uid.and_then(|uid| uid.parse().ok()).expect("a number after runAsUser"),
            capabilities,
            no_new_privileges: says("allowPrivilegeEscalation:", "false"),
            read_only_root: says("readOnlyRootFilesystem:", "true"),
        }
    }

    fn without(&self, capability: &str) -> Security {
        let kept = self.capabilities.iter().filter(|each| *each != capability).cloned().collect();
        Security { capabilities: kept, ..self.clone() }
    }

    /// What starts namegate so; `writable`: its volumes.
    fn through(&self, writable: &[PathBuf]) -> Vec<String> {
        let own: Vec<&str> = writable.iter().map(|path| path.to_str().expect("a path in UTF-8")).collect();
        let mut script = String::new();
        if self.read_only_root {
            let own = own.join(" ");
            // What another test mounts may be gone again, or hidden.
            script = format!(
                "for at in {own}; do mount --bind $at $at; done\n\
                 cut -d' ' -f5 /proc/self/mountinfo | while read -r at; do\n\
                 case \" {own} \" in *\" $at \"*) ;; *) mount -o remount,bind,ro \"$at\" 2>/dev/null || : ;; esac\n\
                 done\n"
            );
        }
        let added: String = self.capabilities.iter().map(|name| format!(",+{name}")).collect();
        let uid = self.uid;
        let privileges = if self.no_new_privileges { "--no-new-privs" } else { "" };
        script += &format!(
            "exec setpriv --reuid {uid} --regid {uid} --clear-groups --bounding-set=-all{added} --inh-caps=-all \
             --ambient-caps=-all {privileges} -- \"$@\""
        );
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", &script, "container"].map(String::from).into()
    }

    /// The process is what it should be: all of its sets, and where it may write.
    #[track_caller]
    fn holds(&self, pid: u32) {
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).expect("it runs");
        let status = read("status");
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default();
        let number = |name: &str| match name {
            "net_bind_service" => 10,
            "net_admin" => 12,
            "sys_admin" => 21,
            "perfmon" => 38,
            "bpf" => 39,
            other => panic!("the chart gives {other}, which this test does not know"),
        };
        let bits = self.capabilities.iter().fold(0u64, |bits, name| bits | 1 << number(name));
        for (set, expected) in [("CapBnd:", bits), ("CapPrm:", bits), ("CapEff:", bits), ("CapInh:", 0), ("CapAmb:", 0)]
        {
            assert_eq!(field(set), format!("{expected:016x}"), "{set}");
        }
        assert_eq!(field("NoNewPrivs:"), if self.no_new_privileges { "1" } else { "0" });
        assert_eq!(field("Uid:").split_whitespace().next(), Some(&*self.uid.to_string()));
        let mounts = read("mountinfo");
        let options = |at: &str| {
            mounts
                .lines()
                .filter_map(|line| {
                    let fields: Vec<&str> = line.split(' ').collect();
                    (fields[4] == at).then(|| fields[5].to_owned())
                })
                .next_back()
        };
        for at in ["/", "/proc", "/sys"] {
            let found = options(at).unwrap_or_default();
            assert_eq!(found.split(',').next(), Some(if self.read_only_root { "ro" } else { "rw" }), "{at}: {found}");
        }
    }
}

/// The chart's containers by their names: `agent`, `namegate-init`, `namegate`.
fn chart() -> BTreeMap<&'static str, Security> {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("helm/namegate");
    let template = |name: &str| fs::read_to_string(chart.join("templates").join(name)).expect("the chart is there");
    let (daemonset, sidecar) = (template("daemonset.yaml"), template("sidecar.yaml"));
    let plain = BTreeMap::from([
        ("agent", Security::read(between(&daemonset, "- name: agent\n", "- name: collector\n"))),
        ("namegate-init", Security::read(between(&sidecar, "- name: namegate-init\n", "- name: namegate\n"))),
        ("namegate", Security::read(between(&sidecar, "- name: namegate\n", "{{- end -}}"))),
    ]);
    let Some(helm) = helm() else {
        println!("capabilities: there is no helm (make tools): read from the chart's templates as they stand");
        return plain;
    };
    println!("capabilities: read from the chart as helm renders it");
    let rendered = |values: &str| {
        let mut command = Command::new(&helm);
        command.args(["template", "try", "--namespace", "namegate", "--kube-version", "1.36.0", "--values"]);
        command.arg(chart.join("ci").join(values)).arg(&chart).env("KUBECONFIG", "/dev/null");
        let said = output(command).expect("helm starts");
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        String::from_utf8(said.stdout).expect("UTF-8")
    };
    let (agent, injected) = (rendered("default-values.yaml"), rendered("sidecar-values.yaml"));
    let patch = |number: u32| {
        let path = format!("/spec/initContainers/{number}\"");
        injected.lines().find(|line| line.contains(&path)).unwrap_or_else(|| panic!("no {path} in {injected}"))
    };
    assert!(patch(0).contains("name: \"namegate-init\"") && patch(1).contains("name: \"namegate\""));
    let found = BTreeMap::from([
        ("agent", Security::read(between(&agent, "- name: agent\n", "- name: collector\n"))),
        ("namegate-init", Security::read(patch(0))),
        ("namegate", Security::read(patch(1))),
    ]);
    assert_eq!(found, plain, "as it is read without helm");
    found
}

#[track_caller]
fn between<'a>(text: &'a str, begin: &str, end: &str) -> &'a str {
    let (_, rest) = text.split_once(begin).unwrap_or_else(|| panic!("no {begin:?} in the chart"));
    rest.split_once(end).unwrap_or_else(|| panic!("no {end:?} in the chart")).0
}

/// That of `make tools`, or of the path.
fn helm() -> Option<PathBuf> {
    let own = std::env::current_exe().expect("the path of this program");
    let tools = own.ancestors().map(|dir| dir.join("tools/bin/helm")).find(|path| path.is_file());
    tools.or_else(|| has("helm").then(|| "helm".into()))
}

/// The volumes that the chart lets it write.
fn volumes(world: &World) -> Vec<PathBuf> {
    ["bpf", "state", "run"].map(|name| world.directory.join(name)).into()
}

fn words(through: &[String]) -> Vec<&str> {
    through.iter().map(String::as_str).collect()
}

/// It ends by itself and names the capability.
#[track_caller]
fn refuses(mut daemon: Daemon, capability: &str) {
    let ended = daemon.ends_within(REFUSAL);
    let said = daemon.log().join("\n");
    assert!(ended.is_some_and(|status| !status.success()), "without {capability}: {ended:?}\n{said}");
    let wanted = format!("CAP_{} is missing", capability.to_ascii_uppercase());
    assert!(said.contains(&wanted), "without {capability} it said: {said}");
}

fn node() -> Result<(), Failed> {
    let agent = chart().remove("agent").expect("the chart has an agent");
    let yard = Yard::new(Topology::ProxyArp, Cni::Calico);
    let settings = yard.world.directory.join("namegate.toml");
    let write = |reject: bool| snapshot::replace(&settings, &format!("[enforcement]\nreject = {reject}\n"));
    write(true);
    let more = ["--config", settings.to_str().expect("a path in UTF-8")];
    let through = agent.through(&volumes(&yard.world));
    let daemon = yard.launch(&words(&through), &more);
    daemon.wait_ready();
    agent.holds(daemon.pid());
    let pod = yard.appear(0, RED);
    yard.is_guarded_as(&pod, RED);
    for family in FAMILIES {
        assert_ne!(pod.agent().datagram(yard.named(family)), Reach::Reached, "nobody has asked");
        let at = yard.named(family);
        assert_eq!(pod.agent().ask(family.kube_dns(), NAME, family.qtype()).addresses, [at.ip()]);
        assert_eq!(pod.agent().connect(at), Reach::Reached);
        assert_eq!(pod.agent().connect(yard.outside(family, BLUE)), Reach::Refused);
    }
    let kept = pod.agent().open(yard.named(Family::V4)).expect("it is granted");

    // A reload of the settings, and of the snapshot.
    write(false);
    daemon.reload();
    let silent = || pod.agent().connect(yard.outside(Family::V4, BLUE)) == Reach::Silent;
    assert!(clock::wait_until(LIMIT, silent), "a changed setting: {}", daemon.log().join("\n"));
    let second = yard.appear(1, BLUE);
    yard.is_guarded_as(&second, BLUE);

    // A new process takes over from the old one, as with maxSurge; then one finds the pins of a dead one.
    let next = yard.launch(&words(&through), &[&more[..], &["--take-over"]].concat());
    next.wait_for_log("took over");
    next.wait_ready();
    drop(daemon);
    yard.is_guarded_as(&pod, RED);
    next.kill();
    for capability in &agent.capabilities {
        let less = agent.without(capability).through(&volumes(&yard.world));
        refuses(yard.launch(&words(&less), &more), capability);
        yard.is_guarded_as(&pod, RED); // what it left is in force
    }
    let daemon = yard.launch(&words(&through), &more);
    daemon.wait_ready();
    agent.holds(daemon.pid());
    assert_eq!(pod.agent().exchange(kept), Reach::Reached, "a connection outlives the restarts");
    for family in FAMILIES {
        assert_eq!(pod.agent().connect(yard.named(family)), Reach::Reached, "what was granted is");
    }
    yard.is_guarded_as(&pod, RED);
    yard.is_guarded_as(&second, BLUE);
    Ok(())
}

fn sidecar() -> Result<(), Failed> {
    let mut chart = chart();
    let [init, beside] = ["namegate-init", "namegate"].map(|name| chart.remove(name).expect("the chart has it"));
    let pod = Pod::new();
    pod.is_open();
    let run_init = |security: &Security| {
        let through = security.through(&volumes(&pod.world));
        let mut command = inside(&pod.world.namespace("pay"), &through[0]);
        command.args(&through[1..]).arg(daemon::program()).args(["sidecar", "--init", "--pin-dir"]);
        command.arg(pod.world.directory.join("bpf/namegate"));
        let said = output(command).expect("namegate starts");
        (said.status.success(), String::from_utf8_lossy(&said.stderr).into_owned())
    };
    assert_eq!(init.capabilities, ["net_admin"]);
    let (fine, said) = run_init(&init.without("net_admin"));
    assert!(!fine && said.contains("CAP_NET_ADMIN is missing"), "{said}");
    pod.is_open(); // nothing was left half done
    let (fine, said) = run_init(&init);
    assert!(fine, "{said}");
    for family in FAMILIES {
        pod.sees(family, ALLOWED, Reach::Silent); // shut, until there is a sidecar
    }

    // Its lines are the test's, not the chart's.
    let flows = pod.world.directory.join("flows.json");
    fs::write(&flows, "").expect("a file can be written");
    let own = [volumes(&pod.world), vec![flows]].concat();
    for capability in &beside.capabilities {
        let less = beside.without(capability).through(&own);
        refuses(Daemon::beside(&pod.world, &words(&less), &[]), capability);
        for family in FAMILIES {
            pod.sees(family, ALLOWED, Reach::Silent);
        }
    }
    let through = beside.through(&own);
    let daemon = Daemon::beside(&pod.world, &words(&through), &[]);
    daemon.wait_ready();
    beside.holds(daemon.pid());
    pod.is_guarded();
    for family in FAMILIES {
        let said = pod.world.pay.ask(family.kube_dns(), EXTRA.0, family.qtype());
        assert_eq!(said.addresses, [family.outside(EXTRA.1)], "as resolv.conf has it");
        pod.sees(family, EXTRA, Reach::Refused);
    }
    pod.write_labels(&format!("{LABELS}tier=\"extra\"\n"));
    let reaches = |name: (&str, u8)| {
        clock::wait_until(LIMIT, || {
            FAMILIES.into_iter().all(|family| {
                pod.asks(family, name);
                pod.world.pay.connect((family.outside(name.1), 443).into()) == Reach::Reached
            })
        })
    };
    assert!(reaches(EXTRA), "a changed label: {}", daemon.log().join("\n"));
    daemon.kill();
    for family in FAMILIES {
        pod.sees(family, ALLOWED, Reach::Reached);
        pod.sees(family, DENIED, Reach::Refused);
    }
    // Where the runtime leaves all ports to everyone, the last one can go.
    pod.world.must("pay", "sysctl -q -w net.ipv4.ip_unprivileged_port_start=0");
    let less = beside.without("net_bind_service");
    assert_ne!(less, beside);
    let daemon = Daemon::beside(&pod.world, &words(&less.through(&own)), &[]);
    daemon.wait_ready();
    less.holds(daemon.pid());
    pod.is_guarded();
    assert!(reaches(EXTRA));
    assert!(daemon.terminate().success());
    Ok(())
}
