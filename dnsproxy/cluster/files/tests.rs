use super::*;

/// As a change that is long over: nothing but its stamp can tell it from what was there.
fn write_long_ago(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)).unwrap();
}

fn looked(directory: &mut Directory) -> (Vec<String>, Vec<String>) {
    let look = directory.look().unwrap();
    (look.changed.into_iter().map(|file| file.name).collect(), look.gone)
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_look_finds_what_is_new_what_says_something_else_and_what_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut directory = Directory::new(folder.path());
    for name in ["a.json", "b.yaml", "c.yml.gz"] {
        fs::write(at(name), "{}").unwrap();
    }
    assert_eq!(looked(&mut directory), (names(&["a.json", "b.yaml", "c.yml.gz"]), names(&[])));
    let first = directory.generation_hash();
    assert_eq!(looked(&mut directory), (names(&[]), names(&[])));
    assert_eq!(directory.generation_hash(), first);
    // Another file, the same words.
    fs::write(at("new"), "{}").unwrap();
    fs::rename(at("new"), at("a.json")).unwrap();
    assert_eq!(looked(&mut directory), (names(&[]), names(&[])));
    fs::write(at("b.yaml"), "[]").unwrap();
    fs::remove_file(at("a.json")).unwrap();
    assert_eq!(looked(&mut directory), (names(&["b.yaml"]), names(&["a.json"])));
    assert_ne!(directory.generation_hash(), first);
}

#[test]
fn what_is_passed_over_is_told_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["a.jsonl", "b.NDJSON", "c.jsonl.gz", "d.txt", ".e.yaml", "..mount", "yaml"] {
        fs::write(at(name), "").unwrap();
    }
    fs::create_dir_all(at("1/2/3/4/5/6/7/8/9")).unwrap();
    fs::create_dir(at(".git")).unwrap();
    fs::write(at(".git/config"), "").unwrap();
    fs::write(at("1/notes.md"), "").unwrap();
    let skipped: Vec<(String, SkippedFor)> =
        skipped(folder.path()).unwrap().into_iter().map(|skipped| (skipped.name, skipped.why)).collect();
    let expected = [
        (".e.yaml", SkippedFor::Hidden),
        (".git", SkippedFor::Hidden),
        ("1/2/3/4/5/6/7/8/9", SkippedFor::Depth),
        ("1/notes.md", SkippedFor::Ending),
        ("d.txt", SkippedFor::Ending),
        ("yaml", SkippedFor::Ending),
    ];
    assert_eq!(skipped, expected.map(|(name, why)| (name.to_owned(), why)));
    assert_eq!(looked(&mut Directory::new(folder.path())).0, names(&["a.jsonl", "b.NDJSON", "c.jsonl.gz"]));
    assert!(
        is_json("a.jsonl") && is_json("b.NDJSON") && is_json("c.jsonl.gz") && !is_json("a.yaml") && !is_json("json")
    );
}

#[test]
fn a_look_at_some_names_finds_what_changed_under_these() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["a.json", "b.json", "c.json"] {
        write_long_ago(&at(name), "[1]");
    }
    let mut directory = Directory::new(folder.path());
    looked(&mut directory);
    let mut looked_at = |wanted: &[&str]| {
        let look = directory.look_at(&wanted.iter().map(|name| (*name).to_owned()).collect()).unwrap();
        let changed: Vec<String> = look.changed.into_iter().map(|file| file.name).collect();
        (changed, look.gone, directory.generation_hash())
    };
    write_long_ago(&at("a.json"), "[2]");
    write_long_ago(&at("b.json"), "[2]");
    fs::remove_file(at("c.json")).unwrap();
    fs::write(at("d.json"), "[4]").unwrap();
    fs::write(at("notes.txt"), "[4]").unwrap();
    let seen = looked_at(&["a.json", "c.json", "d.json", "notes.txt", ".d.json.new", "never.json"]);
    assert_eq!((seen.0, seen.1), (names(&["a.json", "d.json"]), names(&["c.json"])));
    // What is not told of is found by a whole look, and so is what can't be told of.
    fs::create_dir(at("more")).unwrap();
    fs::write(at("more/e.json"), "[5]").unwrap();
    let seen = looked_at(&["more"]);
    assert_eq!((seen.0, seen.1), (names(&["b.json", "more/e.json"]), names(&[])));
    fs::remove_dir_all(at("more")).unwrap();
    let seen = looked_at(&["more"]);
    assert_eq!((seen.0, seen.1), (names(&[]), names(&["more/e.json"])));
    let anew = read(folder.path()).unwrap();
    let hashes = anew.iter().map(|file| (file.name.as_str(), hash(&file.content)));
    assert_eq!(seen.2, generation_hash(hashes));
}

#[test]
fn a_generation_that_is_swapped_in_is_read_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    for (generation, text) in [("..one", "[1]"), ("..two", "[2]")] {
        fs::create_dir(folder.path().join(generation)).unwrap();
        fs::write(folder.path().join(generation).join("a.json"), text).unwrap();
    }
    let link = |to: &str| {
        std::os::unix::fs::symlink(to, folder.path().join("..new")).unwrap();
        fs::rename(folder.path().join("..new"), folder.path().join("..data")).unwrap();
    };
    link("..one");
    let mut directory = Directory::new(folder.path());
    looked(&mut directory);
    link("..two");
    let look = directory.look_at(&BTreeSet::from(["other.json".to_owned()])).unwrap();
    assert_eq!(look.changed[0].content, Ok(b"[2]".to_vec()));
}

#[test]
fn of_generations_that_are_swapped_meanwhile_one_is_read_and_never_half_of_two() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let put = |generation: u32| {
        let inner = format!("..{generation}");
        fs::create_dir(at(&inner)).unwrap();
        for name in ["a.json", "b.json"] {
            fs::write(at(&inner).join(name), format!("[{generation}]")).unwrap();
        }
        std::os::unix::fs::symlink(inner, at("..new")).unwrap();
        fs::rename(at("..new"), at("..data")).unwrap();
    };
    put(0);
    let wanted = BTreeSet::from(["a.json".to_owned(), "b.json".to_owned()]);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for generation in 1..1000 {
                put(generation);
                fs::remove_dir_all(at(&format!("..{}", generation - 1))).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let mut directory = Directory::new(folder.path());
        let mut texts: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            for partial in [false, true, true, true] {
                let look = if partial { directory.look_at(&wanted) } else { directory.look() };
                let Ok(look) = look else { continue }; // swapped again and again: what was known stands
                assert_eq!(look.gone, names(&[]));
                texts.extend(look.changed.into_iter().map(|file| (file.name, file.content.expect("it is there"))));
                assert_eq!((texts.len(), &texts["a.json"]), (2, &texts["b.json"]));
            }
        }
    });
}

#[test]
fn a_directory_that_takes_the_place_of_another_is_read_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["at", "next"] {
        fs::create_dir(at(name)).unwrap();
        write_long_ago(&at(name).join("a.json"), name);
    }
    let mut directory = Directory::new(&at("at"));
    looked(&mut directory);
    fs::rename(at("at"), at("old")).unwrap();
    fs::rename(at("next"), at("at")).unwrap();
    let look = directory.look_at(&BTreeSet::from(["other.json".to_owned()])).unwrap();
    assert_eq!(look.changed[0].content, Ok(b"next".to_vec()));
}

#[test]
fn a_name_that_is_not_utf_8_is_refused_and_others_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &[u8]| folder.path().join(std::ffi::OsStr::from_bytes(name));
    fs::write(at(b"a\xff.json"), "{}").unwrap();
    fs::write(at(b"b\xff.txt"), "{}").unwrap();
    fs::create_dir(at(b"c\xff")).unwrap();
    fs::write(at(b"d.json"), "{}").unwrap();
    let look = Directory::new(folder.path()).look().unwrap();
    let seen: Vec<(&str, bool)> = look.changed.iter().map(|file| (file.name.as_str(), file.content.is_ok())).collect();
    assert_eq!(seen, [("a\\xff.json", false), ("c\\xff", false), ("d.json", true)]);
    let text = look.changed[0].content.as_ref().unwrap_err();
    assert_eq!(text, "its name is not UTF-8; the names of files are");
}

#[test]
fn a_link_whose_target_changed_elsewhere_is_found_by_a_whole_look() {
    let [folder, elsewhere] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let target = elsewhere.path().join("target");
    write_long_ago(&target, "[1]");
    std::os::unix::fs::symlink(&target, folder.path().join("a.json")).unwrap();
    let mut directory = Directory::new(folder.path());
    looked(&mut directory);
    write_long_ago(&target, "[2]");
    assert_eq!(looked(&mut directory).0, names(&["a.json"]));
}

#[test]
fn a_second_write_in_the_same_tick_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let mut directory = Directory::new(folder.path());
    for round in 0..200 {
        fs::write(folder.path().join("a.json"), format!("[{}]", round % 10)).unwrap();
        assert_eq!(looked(&mut directory).0, names(&["a.json"]), "write {round}");
    }
}

#[test]
fn what_is_settled_is_not_read_again_until_its_stamp_changes() {
    let stamp = |changed: i64| Stamp { device: 1, inode: 1, size: 1, modified: (1, 0), changed: (changed, 0) };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
    assert!(stamp(990).is_settled(now));
    assert!(!stamp(999).is_settled(now) && !stamp(2000).is_settled(now));
    // A modification time of long ago does not settle a file whose inode changed just now.
    let folder = tempfile::tempdir().unwrap();
    write_long_ago(&folder.path().join("a.json"), "[1]");
    let mut directory = Directory::new(folder.path());
    looked(&mut directory);
    write_long_ago(&folder.path().join("a.json"), "[2]");
    assert_eq!(looked(&mut directory).0, names(&["a.json"]));
}

#[test]
fn a_file_that_can_not_be_read_is_new_when_it_can() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("nowhere", folder.path().join("a.json")).unwrap();
    let mut directory = Directory::new(folder.path());
    assert!(directory.look().unwrap().changed[0].content.is_err());
    assert_eq!(looked(&mut directory), (names(&[]), names(&[])), "the same error again");
    fs::write(folder.path().join("nowhere"), "{}").unwrap();
    assert_eq!(looked(&mut directory).0, names(&["a.json"]));
}

#[test]
fn a_directory_that_can_not_be_read_is_an_error_and_what_was_known_stays_known() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("a.json"), "{}").unwrap();
    let mut directory = Directory::new(&inner);
    looked(&mut directory);
    fs::rename(&inner, folder.path().join("away")).unwrap();
    assert!(directory.look().is_err());
    fs::rename(folder.path().join("away"), &inner).unwrap();
    assert_eq!(looked(&mut directory), (names(&[]), names(&[])));
}
