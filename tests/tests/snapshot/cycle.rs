//! Saved, restored by each backend, looked at word by word, and saved again.

use super::*;

#[test]
fn a_machine_goes_on_where_it_was_saved() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::new(folder.path(), "first");
        let mut vmm = filled();
        vmm.pause();
        vmm.save(&files);
        vmm.resume();
        is_whole(&mut vmm);
        quits(&mut vmm);
        for backend in ["File", "Lazy"] {
            let mut vmm = Vmm::restored(&files, backend);
            assert_eq!(vmm.state(), "Running");
            is_whole(&mut vmm);
            quits(&mut vmm);
        }
    });
}

#[test]
fn what_was_restored_is_saved_again() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut files = SnapshotFiles::new(folder.path(), "0");
        let vmm = filled();
        vmm.pause();
        vmm.save(&files);
        drop(vmm);
        for (index, backend) in ["Lazy", "File", "Lazy", "File"].into_iter().enumerate() {
            let mut vmm = Vmm::restored(&files, backend);
            if index % 2 == 1 {
                is_whole(&mut vmm);
            }
            vmm.pause();
            files = SnapshotFiles::new(folder.path(), &(index + 1).to_string());
            vmm.save(&files);
            vmm.resume();
            is_whole(&mut vmm);
            quits(&mut vmm);
        }
    });
}

#[test]
fn a_machine_goes_on_from_one_line_and_its_state_file_tells_its_version() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = saved(folder.path(), "saved");
        let (state, memory) = (files.state.to_str().unwrap(), files.memory.to_str().unwrap());
        let mut vmm = Vmm::start_command(&["--describe-snapshot", state]);
        assert_eq!(vmm.wait_for_line(""), "v1.0.0");
        assert!(vmm.wait_for_exit().success());
        let mut vmm = Vmm::start_command(&["run", "--snapshot", state, memory]);
        is_whole(&mut vmm);
        quits(&mut vmm);
    });
}
