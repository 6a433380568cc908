//! `docs/kube-proxy-parity.md` has a test or a reason in every row, and names only tests that exist.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

/// The layers whose tests are named by sentences, with where they are.
const LAYERS: [(&str, &str); 3] = [
    ("cluster", "tests/tests/cluster"),
    ("net", "tests/tests/net"),
    ("packet", "tests/tests/packet"),
];
/// The layer whose tests are named by functions.
const UNIT: &str = "unit";
/// The layer whose tests are files, and where these are.
const GOLDEN: (&str, &str) = ("golden", "tests/golden");

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn page() -> Result<String> {
    fs::read_to_string(root().join("docs/kube-proxy-parity.md")).context("read the page")
}

/// All Rust files in a directory, or the file itself, one after the other.
fn sources(path: &Path) -> io::Result<String> {
    if path.is_file() {
        return if path.extension().is_some_and(|extension| extension == "rs") {
            fs::read_to_string(path)
        } else {
            Ok(String::new())
        };
    }
    let mut text = String::new();
    for entry in fs::read_dir(path)? {
        text += &sources(&entry?.path())?;
    }
    Ok(text)
}

/// The tests that the page names: a layer, and a name.
fn named(page: &str) -> impl Iterator<Item = (&str, &str)> {
    let code = page.split('`').skip(1).step_by(2);
    code.filter_map(|code| code.split_once(": "))
        .filter(|(layer, _)| *layer == UNIT || LAYERS.iter().any(|(known, _)| known == layer))
}

/// Whether one of the functions that are tests is called so.
fn has_test(sources: &str, name: &str) -> bool {
    let heading = format!("fn {name}(");
    sources.match_indices(&heading).any(|(at, _)| {
        let before = sources[..at]
            .rsplit_once("\n\n")
            .map_or("", |(_, text)| text);
        before.contains("test]") || before.contains("proptest!")
    })
}

#[test]
fn every_test_that_the_page_names_exists() -> Result<()> {
    let page = page()?;
    let mut sentences = BTreeMap::new();
    for (layer, path) in LAYERS {
        sentences.insert(layer, sources(&root().join(path))?);
    }
    let mut functions = String::new();
    for package in ["lb-common", "lb-userspace", "tests"] {
        for part in ["src", "tests"] {
            let path = root().join(package).join(part);
            if path.is_dir() {
                functions += &sources(&path)?;
            }
        }
    }
    let missing: Vec<_> = named(&page)
        .filter(|(layer, name)| match sentences.get(layer) {
            _ if *layer == GOLDEN.0 => {
                let file = root().join(GOLDEN.1).join(format!("{name}.yaml"));
                !file.is_file()
            }
            Some(text) => {
                !text.contains(&format!("\"{name}\"")) && !text.contains(&format!("\"{name} {{"))
            }
            None => !has_test(&functions, name),
        })
        .collect();
    ensure!(missing.is_empty(), "there is no test called {missing:#?}");
    ensure!(
        named(&page).count() > 50,
        "the page names too few tests to be believed"
    );
    Ok(())
}

#[test]
fn every_row_of_the_page_has_a_test_or_a_reason() -> Result<()> {
    let page = page()?;
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let mut empty = Vec::new();
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        if cells.len() != 3 || cells.iter().any(|cell| cell.is_empty()) {
            empty.push(row);
        }
    }
    ensure!(empty.is_empty(), "rows that say too little: {empty:#?}");
    Ok(())
}

#[test]
fn a_test_that_does_not_exist_is_missed() {
    let sources = "fn helper() {}\n\n#[test]\nfn one_is_one() {}\n";
    assert!(has_test(sources, "one_is_one"));
    assert!(!has_test(sources, "helper") && !has_test(sources, "two_is_one"));
    let page = "| a | b | `net: x y`, `unit: f`, `other: z` |";
    assert!(named(page).eq([("net", "x y"), ("unit", "f")]));
}
