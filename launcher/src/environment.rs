//! What the launcher reads from the environment besides the variables that stand for flags.

use std::env::{current_exe, home_dir, temp_dir, var, var_os};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Where private, short-lived files of this login belong.
const XDG_RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";
/// Where this program keeps what can be made again: `--cache-dir`, and how the processes of a server are told.
pub const CACHE_DIR: &str = "LORIKEET_CACHE_DIR";
/// What keeps Python to its own modules. Else a `random.py` in the directory that it is started in would be taken for
/// one of them.
pub const OWN_MODULES: (&str, &str) = ("PYTHONSAFEPATH", "1");
/// Where files belong that can be made again.
const XDG_CACHE_HOME: &str = "XDG_CACHE_HOME";
/// Which GPUs this process may use: indices or ids, comma separated.
const CUDA_VISIBLE_DEVICES: &str = "CUDA_VISIBLE_DEVICES";
/// The same, as container runtimes say it.
const NVIDIA_VISIBLE_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";

/// A directory for sockets: per login if the system has one, else the temporary directory.
pub fn runtime_base() -> PathBuf {
    directory(XDG_RUNTIME_DIR).filter(|path| path.is_dir()).unwrap_or_else(temp_dir)
}

/// The user's cache directory for this program; none for a user without a home. Compiled kernels are loaded from it:
/// a place that others can write to, such as the temporary directory, will not do.
pub fn cache_dir() -> Option<PathBuf> {
    let of_user = || {
        let home = || home_dir().filter(|home| home.is_absolute()).map(|home| home.join(".cache"));
        directory(XDG_CACHE_HOME).or_else(home).map(|cache| cache.join("lorikeet"))
    };
    var_os(CACHE_DIR).filter(|value| !value.is_empty()).map(PathBuf::from).or_else(of_user)
}

/// How many GPUs the environment grants; `None` if it does not say.
pub fn granted_gpus() -> Option<u32> {
    let list = var(CUDA_VISIBLE_DEVICES).or_else(|_| var(NVIDIA_VISIBLE_DEVICES)).ok()?;
    count_devices(&list)
}

/// This executable, to start the router from.
pub fn executable() -> std::io::Result<PathBuf> {
    current_exe()
}

/// The Python that has `lorikeet_server`: the one installed beside this executable, else `python3`.
pub fn python() -> PathBuf {
    // `argv[0]` as well, because the executable's path is free of links and a link's place may be the environment.
    let called_as =
        std::env::args_os().next().map(PathBuf::from).filter(|path| path.components().count() > 1);
    [called_as, current_exe().ok()]
        .into_iter()
        .flatten()
        .filter_map(|path| path.parent().map(|directory| directory.join("python")))
        .find(|path| path.is_file())
        .unwrap_or_else(|| PathBuf::from("python3"))
}

/// A command as the shell would find it.
pub fn find_command(name: &Path) -> Option<PathBuf> {
    if name.components().count() > 1 {
        return name.is_file().then(|| name.to_owned());
    }
    std::env::split_paths(&var_os("PATH")?).map(|directory| directory.join(name)).find(|path| path.is_file())
}

fn directory(variable: &str) -> Option<PathBuf> {
    // The XDG specification: relative paths are to be ignored.
    var_os(variable)
        .filter(|value: &OsString| !value.is_empty())
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}

fn count_devices(list: &str) -> Option<u32> {
    match list.trim() {
        "all" => None,
        "" | "void" | "none" | "-1" => Some(0),
        list => u32::try_from(list.split(',').count()).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_counted_as_the_drivers_do() {
        assert_eq!(count_devices("0,1,2"), Some(3));
        assert_eq!(count_devices("GPU-8932f937"), Some(1));
        assert_eq!(count_devices("void"), Some(0));
        assert_eq!(count_devices(""), Some(0));
        assert_eq!(count_devices("all"), None, "the environment does not say how many that is");
    }

    #[test]
    fn commands_are_found_on_the_path() {
        assert!(find_command(Path::new("sh")).is_some());
        assert_eq!(find_command(Path::new("no-such-command-at-all")), None);
        assert_eq!(find_command(Path::new("./no/such/file")), None);
    }
}
