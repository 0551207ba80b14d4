//! From what was written on the command line to what is asked over the wire.

use super::arguments::{ApiOperation, DriveCommand, LoggerArgs, MachineConfigCommand};
use crate::Request;
use crate::types::{
    Action, BootSource, Drive, DrivePatch, Entropy, Logger, MachineConfig, MachineConfigPatch, Metrics,
    Serial, VmState,
};

impl ApiOperation {
    /// The request that this stands for.
    pub fn request(&self) -> Request {
        match self.clone() {
            Self::Info => Request::GetInstanceInfo,
            Self::Version => Request::GetVersion,
            Self::Config => Request::GetVmConfig,
            Self::BootSource { kernel, initrd, cmdline } => Request::PutBootSource(BootSource {
                kernel_image_path: kernel,
                initrd_path: initrd,
                boot_args: cmdline,
            }),
            Self::MachineConfig(command) => command.request(),
            Self::Drive(command) => command.request(),
            Self::Entropy(limits) => Request::PutEntropy(Entropy { rate_limiter: limits.limiter() }),
            Self::Serial { out_path, limit } => {
                Request::PutSerial(Serial { serial_out_path: out_path, rate_limiter: limit })
            }
            Self::Logger(args) => args.request(),
            Self::Metrics { path } => {
                Request::PutMetrics(Metrics { metrics_path: path, ..Metrics::default() })
            }
            Self::Prometheus => Request::GetPrometheus,
            Self::Start => Request::PutAction(Action::InstanceStart),
            Self::CtrlAltDel => Request::PutAction(Action::SendCtrlAltDel),
            Self::FlushMetrics => Request::PutAction(Action::FlushMetrics),
            Self::Pause => Request::PatchVm(VmState::Paused),
            Self::Resume => Request::PatchVm(VmState::Resumed),
            Self::Snapshot(command) => command.request(),
        }
    }
}

impl MachineConfigCommand {
    fn request(self) -> Request {
        match self {
            Self::Get => Request::GetMachineConfig,
            Self::Set { cpus, memory_mib, smt, track_dirty_pages, huge_pages } => {
                Request::PutMachineConfig(MachineConfig {
                    vcpu_count: cpus,
                    mem_size_mib: memory_mib,
                    smt,
                    cpu_template: None,
                    track_dirty_pages,
                    huge_pages,
                })
            }
            Self::Patch { cpus, memory_mib, smt, track_dirty_pages, huge_pages } => {
                Request::PatchMachineConfig(MachineConfigPatch {
                    vcpu_count: cpus,
                    mem_size_mib: memory_mib,
                    smt,
                    cpu_template: None,
                    track_dirty_pages,
                    huge_pages,
                })
            }
        }
    }
}

impl DriveCommand {
    fn request(self) -> Request {
        match self {
            Self::Add { id, path, root, read_only, partuuid, cache_type, io_engine, limits } => {
                Request::PutDrive(Drive {
                    drive_id: id,
                    partuuid,
                    is_root_device: root,
                    cache_type,
                    is_read_only: Some(read_only),
                    path_on_host: Some(path),
                    rate_limiter: limits.limiter(),
                    io_engine,
                    socket: None,
                })
            }
            Self::Patch { id, path, limits } => Request::PatchDrive(DrivePatch {
                drive_id: id,
                path_on_host: path,
                rate_limiter: limits.limiter(),
            }),
        }
    }
}

impl LoggerArgs {
    fn request(self) -> Request {
        Request::PutLogger(Logger {
            log_path: self.path,
            level: self.level,
            show_level: self.show_level,
            show_log_origin: self.show_origin,
            module: self.module,
        })
    }
}
