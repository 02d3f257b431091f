//! The files of the project as text: those that git would take, found without git.
//!
//! Skips `target`, hidden directories other than `.ci`, and whatever is not UTF-8.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::code;

/// One file.
pub struct File {
    /// Where it is, from the project's root, with `/`.
    pub path: String,
    /// Its bytes.
    pub text: String,
    /// Rust only: the text with comments and the insides of literals blanked, line for line.
    pub code: String,
    /// Whether it has a run bit.
    pub runs: bool,
}

impl File {
    fn new(path: String, text: String, runs: bool) -> Self {
        let is_rust = path.ends_with(".rs");
        let code = if is_rust { code::blank(&text) } else { String::new() };
        Self { path, text, code, runs }
    }

    /// A file that a rule is tried on; it has a run bit unless its name ends in `.norun`.
    pub fn sample(path: &str, text: &str) -> Self {
        let runs = !path.ends_with(".norun");
        Self::new(path.trim_end_matches(".norun").to_owned(), text.to_owned(), runs)
    }

    /// Whether it is Rust.
    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Whether it is a command: a file of `scripts` or `.ci` without an ending.
    pub fn is_script(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        (self.path.starts_with("scripts/") || self.path.starts_with(".ci/")) && !name.contains('.')
    }

    /// Whether it is shell: a command, or a part that commands read in.
    pub fn is_shell(&self) -> bool {
        self.is_script() || self.path.ends_with(".sh")
    }

    /// The blanked lines with their numbers from 1, without those of `#[cfg(test)]` modules.
    pub fn shipped(&self) -> impl Iterator<Item = (usize, &str)> {
        let tests = code::test_lines(&self.code);
        let lines = self.code.lines().enumerate().map(|(at, line)| (at + 1, line));
        lines.filter(move |(number, _)| !tests.iter().any(|range| range.contains(number)))
    }

    /// A fault of one of its lines.
    pub fn fault(&self, line: usize, what: impl std::fmt::Display) -> String {
        format!("{}:{line}: {what}", self.path)
    }
}

/// A set of files.
pub struct Tree {
    /// In order of their paths.
    pub files: Vec<File>,
}

impl Tree {
    /// The project itself.
    pub fn of_project() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = vec![];
        collect(root, root, &mut files);
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Self { files }
    }

    /// The file at a path.
    pub fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }

    /// The Rust files under a folder.
    pub fn rust<'a>(&'a self, under: &'a str) -> impl Iterator<Item = &'a File> {
        self.files.iter().filter(move |file| file.is_rust() && file.path.starts_with(under))
    }
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<File>) {
    let entries = fs::read_dir(folder).expect("a folder of the project is readable");
    for entry in entries {
        let entry = entry.expect("an entry of a folder is readable");
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let kind = entry.file_type().expect("an entry has a type");
        let hidden = name.starts_with('.') && name != ".ci" && name != ".gitignore";
        if hidden || name == "target" || kind.is_symlink() {
            continue;
        }
        if kind.is_dir() {
            collect(root, &path, files);
        } else if let Ok(text) = fs::read_to_string(&path) {
            let shown = path.strip_prefix(root).expect("under the root").to_string_lossy();
            let mode = entry.metadata().expect("a file has a mode").permissions().mode();
            files.push(File::new(shown.replace('\\', "/"), text, mode & 0o111 != 0));
        }
    }
}
