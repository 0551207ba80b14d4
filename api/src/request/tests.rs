//! The texts clients match on, row by row; and that rendering and parsing are inverses.

use super::*;
use crate::types::{
    CacheType, CpuTemplate, DriveOverride, HugePages, IoEngine, LazyOptions, LogLevel, MemBackend,
    MemBackendType, RateLimiter, RestoredHugePages, SerialOverride, SnapshotType, TokenBucket,
};
use proptest::option;
use proptest::prelude::*;

fn parse(method: &Method, path: &str, body: &str) -> Result<Parsed, Fault> {
    Request::parse(method, path, body.as_bytes())
}

fn refusal(method: &Method, path: &str, body: &str) -> String {
    let fault = parse(method, path, body).unwrap_err();
    assert_eq!(fault.status, 400);
    fault.message
}

#[test]
fn texts_about_method_and_path() {
    assert_eq!(refusal(&Method::PUT, "/boot-source", ""), "Empty PUT request.");
    assert_eq!(refusal(&Method::PATCH, "/vm", ""), "Empty PATCH request.");
    assert_eq!(refusal(&Method::GET, "/version", "{}"), "GET request cannot have a body.");
    for (method, path, text) in [
        (&Method::GET, "/nonsense", "GET nonsense"),
        (&Method::GET, "/vm", "GET vm"),
        (&Method::GET, "/drives/a", "GET drives"),
        (&Method::GET, "/version/more", "GET version"),
        (&Method::GET, "/vm/config/more", "GET vm"),
        (&Method::PUT, "/vm/config", "PUT vm"),
        (&Method::PUT, "/machine-config/x", "PUT machine-config"),
        (&Method::PATCH, "/boot-source", "PATCH boot-source"),
        (&Method::DELETE, "/drives/a", "DELETE drives"),
        (&Method::POST, "/", "POST "),
    ] {
        let body = if method == Method::GET { "" } else { "{}" };
        let expected = format!("Invalid request method and/or path: {text}.");
        assert_eq!(refusal(method, path, body), expected);
    }
}

#[test]
fn slashes_before_and_after_a_path_do_not_count() {
    for path in ["/version", "//version", "/version/", "version"] {
        assert_eq!(parse(&Method::GET, path, "").unwrap().request, Request::GetVersion, "{path}");
    }
}

#[test]
fn texts_about_bodies() {
    let start = "An error occurred when deserializing the json body of a request: ";
    let cases = [
        ("/boot-source", "{", "EOF while parsing an object at line 1 column 1."),
        ("/boot-source", r#"{"boot_args": "x"}"#, "missing field `kernel_image_path` at line 1 column 18."),
        ("/boot-source", r#"{"kernel_image_path": 7}"#, "invalid type: integer `7`, expected a string"),
        ("/boot-source", r#"{"kernel_image_path": "k", "kernel": "k"}"#, "unknown field `kernel`"),
        ("/actions", r#"{"action_type": "Explode"}"#, "unknown variant `Explode`"),
        (
            "/machine-config",
            r#"{"vcpu_count": 256, "mem_size_mib": 1}"#,
            "invalid value: integer `256`, expected u8",
        ),
        (
            "/machine-config",
            r#"{"vcpu_count": 1, "mem_size_mib": -1}"#,
            "invalid value: integer `-1`, expected u64",
        ),
        ("/machine-config", r#"{"vcpu_count": 1}"#, "missing field `mem_size_mib`"),
        ("/machine-config", "[]", "invalid length 0"),
        ("/logger", r#"{"level": "loud"}"#, "unknown log level"),
        (
            "/drives/a",
            r#"{"drive_id": "a", "is_root_device": "yes"}"#,
            "invalid type: string \"yes\", expected a boolean",
        ),
    ];
    for (path, body, text) in cases {
        let refusal = refusal(&Method::PUT, path, body);
        assert!(refusal.starts_with(&format!("{start}{text}")), "{path} {body}: {refusal}");
        assert!(refusal.ends_with('.'), "{refusal}");
    }
}

#[test]
fn texts_about_ids() {
    let drive = r#"{"drive_id": "a", "is_root_device": false, "path_on_host": "x"}"#;
    for method in [&Method::PUT, &Method::PATCH] {
        assert_eq!(refusal(method, "/drives", drive), "The ID cannot be empty.");
        assert_eq!(refusal(method, "/drives/", drive), "The ID cannot be empty.");
        let characters = "API Resource IDs can only contain alphanumeric characters and underscores.";
        assert_eq!(refusal(method, "/drives/a-b", drive), characters);
    }
    let mismatch = "The id from the path does not match the id from the body!";
    assert_eq!(refusal(&Method::PUT, "/drives/b", drive), mismatch);
    assert_eq!(refusal(&Method::PATCH, "/drives/b", r#"{"drive_id": "a"}"#), mismatch);
}

#[test]
fn values_outside_the_contract_are_named_by_their_types() {
    let machine = |body: &str| serde_json::from_str::<MachineConfig>(body).unwrap().validate().unwrap_err();
    let count = "The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number if SMT is enabled.";
    assert_eq!(machine(r#"{"vcpu_count": 0, "mem_size_mib": 128}"#).to_string(), count);
    assert_eq!(machine(r#"{"vcpu_count": 33, "mem_size_mib": 128}"#).to_string(), count);
    let memory = "The memory size (MiB) is either 0, or not a multiple of the configured page size.";
    assert_eq!(machine(r#"{"vcpu_count": 1, "mem_size_mib": 0}"#).to_string(), memory);
    assert_eq!(machine(r#"{"vcpu_count": 1, "mem_size_mib": 3, "huge_pages": "2M"}"#).to_string(), memory);
    let drive = |rest: &str| {
        let body = format!(r#"{{"drive_id": "a", "is_root_device": true {rest}}}"#);
        serde_json::from_str::<Drive>(&body).unwrap().validate().unwrap_err().to_string()
    };
    assert!(drive("").contains("path_on_host"));
    assert!(drive(r#", "path_on_host": """#).contains("path_on_host"));
    assert!(drive(r#", "socket": "/s""#).contains("vhost-user"));
    assert!(BootSource::default().validate().unwrap_err().to_string().contains("kernel_image_path"));
    assert_eq!(refusal(&Method::PATCH, "/machine-config", "{}"), "Empty PATCH request.");
}

#[test]
fn a_cpu_template_is_deprecated() {
    let body = r#"{"vcpu_count": 1, "mem_size_mib": 128, "cpu_template": "T2"}"#;
    assert!(parse(&Method::PUT, "/machine-config", body).unwrap().deprecated);
    assert!(parse(&Method::PATCH, "/machine-config", r#"{"cpu_template": "None"}"#).unwrap().deprecated);
    assert!(!parse(&Method::PATCH, "/machine-config", r#"{"vcpu_count": 2}"#).unwrap().deprecated);
}

#[test]
fn texts_about_snapshots() {
    let load =
        |rest: &str| refusal(&Method::PUT, "/snapshot/load", &format!(r#"{{"snapshot_path": "s"{rest}}}"#));
    let start = "An error occurred when deserializing the json body of a request: ";
    let backend = r#""mem_backend": {"backend_type": "File", "backend_path": "m"}"#;
    for (rest, text) in [
        (String::new(), "missing field: either `mem_backend` or `mem_file_path` is required."),
        (
            format!(r#", {backend}, "mem_file_path": "m""#),
            "too many fields: either `mem_backend` or `mem_file_path` exclusively is required.",
        ),
        (
            r#", "mem_backend": {"backend_type": "Tape", "backend_path": "m"}"#.to_owned(),
            "unknown variant `Tape`",
        ),
        (format!(r#", {backend}, "resume": true"#), "unknown field `resume`"),
        (r#", "mem_backend": {"backend_type": "File"}"#.to_owned(), "missing field `backend_path`"),
    ] {
        let refusal = load(&rest);
        assert!(refusal.starts_with(&format!("{start}{text}")), "{rest}: {refusal}");
    }
    let create = |body: &str| refusal(&Method::PUT, "/snapshot/create", body);
    assert!(create(r#"{"snapshot_path": "s"}"#).contains("missing field `mem_file_path`"));
    assert!(
        create(r#"{"snapshot_path": "s", "mem_file_path": "m", "version": "1"}"#).contains("unknown field")
    );
    let other = "Invalid request method and/or path: PUT snapshot.";
    assert_eq!(refusal(&Method::PUT, "/snapshot", "{}"), other);
    assert_eq!(refusal(&Method::PUT, "/snapshot/delete", "{}"), other);
    assert_eq!(
        refusal(&Method::PATCH, "/snapshot/create", "{}"),
        "Invalid request method and/or path: PATCH snapshot."
    );
}

#[test]
fn former_names_of_a_load_are_deprecated_and_mean_the_same() {
    let load = |rest: &str| {
        let body = format!(r#"{{"snapshot_path": "s", {rest}}}"#);
        let Parsed { request: Request::LoadSnapshot(load), deprecated } =
            parse(&Method::PUT, "/snapshot/load", &body).unwrap()
        else {
            panic!("not a load")
        };
        (load, deprecated)
    };
    let (former, deprecated) = load(r#""mem_file_path": "m", "enable_diff_snapshots": true"#);
    assert!(deprecated && former.tracks_dirty_pages());
    let (now, deprecated) =
        load(r#""mem_backend": {"backend_type": "File", "backend_path": "m"}, "track_dirty_pages": true"#);
    assert!(!deprecated && now.tracks_dirty_pages());
    assert_eq!(former.backend(), now.backend());
}

#[test]
fn what_no_host_could_save_or_restore_is_refused() {
    let create = |snapshot_path: &str, mem_file_path: &str| {
        let (snapshot_path, mem_file_path) = (snapshot_path.to_owned(), mem_file_path.to_owned());
        SnapshotCreate { snapshot_path, mem_file_path, ..SnapshotCreate::default() }.validate()
    };
    assert_eq!(create("", "m"), Err(Invalid::SnapshotPath));
    assert_eq!(create("s", "s"), Err(Invalid::OneSnapshotFile));
    assert_eq!(create("s", "m"), Ok(()));
    let load = |rest: &str, kind: &str| {
        let backend = format!(r#""mem_backend": {{"backend_type": "{kind}", "backend_path": "m"}}"#);
        let body = format!(r#"{{"snapshot_path": "s", {backend} {rest}}}"#);
        serde_json::from_str::<SnapshotLoad>(&body).unwrap().validate()
    };
    let (network, vsock, lazy) = (
        r#", "network_overrides": [{"iface_id": "e", "host_dev_name": "t"}]"#,
        r#", "vsock_override": {"uds_path": "v"}"#,
        r#", "lazy": {"fill_mib_s": 5}"#,
    );
    assert_eq!(load(network, "File"), Err(Invalid::NetworkOverride));
    assert_eq!(load(vsock, "File"), Err(Invalid::VsockOverride));
    assert_eq!(load(lazy, "Uffd"), Err(Invalid::LazyOptions));
    assert_eq!(load(lazy, "Lazy"), Ok(()));
    let drive = |id: &str, path: &str| {
        load(&format!(r#", "drive_overrides": [{{"drive_id": "{id}", "path_on_host": "{path}"}}]"#), "File")
    };
    assert_eq!(drive("a-b", "p"), Err(Invalid::IdCharacters));
    assert_eq!(drive("a", ""), Err(Invalid::DrivePath));
    assert_eq!(drive("a", "p"), Ok(()));
    let one = r#"{"drive_id": "a", "path_on_host": "p"}"#;
    let twice = load(&format!(r#", "drive_overrides": [{one}, {one}]"#), "File");
    assert_eq!(twice, Err(Invalid::OverriddenTwice("a".to_owned())));
}

#[test]
fn the_state_of_a_vm_may_come_with_unknown_fields() {
    let parsed = parse(&Method::PATCH, "/vm", r#"{"state": "Paused", "note": 1}"#).unwrap();
    assert_eq!(parsed.request, Request::PatchVm(VmState::Paused));
}

fn bucket() -> impl Strategy<Value = TokenBucket> {
    (any::<u64>(), option::of(any::<u64>()), any::<u64>())
        .prop_map(|(size, one_time_burst, refill_time)| TokenBucket { size, one_time_burst, refill_time })
}

fn limiter() -> impl Strategy<Value = RateLimiter> {
    (option::of(bucket()), option::of(bucket())).prop_map(|(bandwidth, ops)| RateLimiter { bandwidth, ops })
}

fn id() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9_]{1,20}"
}

fn huge_pages() -> impl Strategy<Value = HugePages> {
    prop_oneof![Just(HugePages::None), Just(HugePages::Transparent), Just(HugePages::Hugetlb2M)]
}

fn template() -> impl Strategy<Value = CpuTemplate> {
    prop_oneof![Just(CpuTemplate::T2), Just(CpuTemplate::V1N1)]
}

fn machine_config() -> impl Strategy<Value = MachineConfig> {
    (1..=16_u8, 1..=u64::MAX / 2, option::of(template()), any::<bool>(), huge_pages()).prop_map(
        |(pairs, half_size_mib, cpu_template, track_dirty_pages, huge_pages)| MachineConfig {
            vcpu_count: pairs * 2,
            mem_size_mib: half_size_mib * 2,
            smt: cfg!(target_arch = "x86_64"),
            cpu_template,
            track_dirty_pages,
            huge_pages,
        },
    )
}

fn machine_patch() -> impl Strategy<Value = MachineConfigPatch> {
    (
        any::<u8>(),
        option::of(any::<u64>()),
        option::of(any::<bool>()),
        option::of(template()),
        option::of(huge_pages()),
    )
        .prop_map(|(vcpu_count, mem_size_mib, smt, cpu_template, huge_pages)| MachineConfigPatch {
            vcpu_count: Some(vcpu_count),
            mem_size_mib,
            smt,
            cpu_template,
            track_dirty_pages: smt,
            huge_pages,
        })
}

fn drive() -> impl Strategy<Value = Drive> {
    let cache = prop_oneof![Just(CacheType::Unsafe), Just(CacheType::Writeback)];
    let engine = prop_oneof![Just(IoEngine::Sync), Just(IoEngine::Async)];
    (
        id(),
        option::of(".*"),
        any::<bool>(),
        cache,
        option::of(any::<bool>()),
        ".+",
        option::of(limiter()),
        option::of(engine),
    )
        .prop_map(
            |(
                drive_id,
                partuuid,
                is_root_device,
                cache_type,
                is_read_only,
                path,
                rate_limiter,
                io_engine,
            )| Drive {
                drive_id,
                partuuid,
                is_root_device,
                cache_type,
                is_read_only,
                path_on_host: Some(path),
                rate_limiter,
                io_engine,
                socket: None,
            },
        )
}

fn drive_patch() -> impl Strategy<Value = DrivePatch> {
    (id(), option::of(".+"), option::of(limiter())).prop_map(|(drive_id, path_on_host, rate_limiter)| {
        DrivePatch { drive_id, path_on_host, rate_limiter }
    })
}

fn boot_source() -> impl Strategy<Value = BootSource> {
    (".+", option::of(".*"), option::of(".*")).prop_map(|(kernel_image_path, initrd_path, boot_args)| {
        BootSource { kernel_image_path, initrd_path, boot_args }
    })
}

fn logger() -> impl Strategy<Value = Logger> {
    let level = prop_oneof![Just(LogLevel::Off), Just(LogLevel::Warning), Just(LogLevel::Trace)];
    (option::of(".*"), option::of(level), option::of(any::<bool>()), option::of(".*")).prop_map(
        |(log_path, level, show_level, module)| Logger {
            log_path,
            level,
            show_level,
            show_log_origin: show_level,
            module,
        },
    )
}

fn metrics() -> impl Strategy<Value = Metrics> {
    let properties = prop::collection::btree_map(".*", any::<i64>().prop_map(serde_json::Value::from), 0..4);
    (".*", option::of(any::<bool>()), option::of(properties))
        .prop_map(|(metrics_path, emit_id, properties)| Metrics { metrics_path, emit_id, properties })
}

fn snapshot_create() -> impl Strategy<Value = SnapshotCreate> {
    (any::<bool>(), ".*", ".*", any::<bool>()).prop_map(|(is_diff, snapshot_path, mem_file_path, live)| {
        let snapshot_type = if is_diff { SnapshotType::Diff } else { SnapshotType::Full };
        SnapshotCreate { snapshot_type, snapshot_path, mem_file_path, live }
    })
}

fn backend_and_pages() -> impl Strategy<Value = (MemBackendType, RestoredHugePages)> {
    prop_oneof![
        Just((MemBackendType::File, RestoredHugePages::Snapshot)),
        Just((MemBackendType::Uffd, RestoredHugePages::Hugetlb2M)),
        Just((MemBackendType::Lazy, RestoredHugePages::Transparent)),
    ]
}

fn snapshot_load() -> impl Strategy<Value = SnapshotLoad> {
    let overrides = prop::collection::vec(
        (id(), ".+").prop_map(|(drive_id, path_on_host)| DriveOverride { drive_id, path_on_host }),
        0..3,
    );
    let serial = option::of(option::of(".*").prop_map(|serial_out_path| SerialOverride { serial_out_path }));
    let lazy = option::of((option::of(any::<u64>()), option::of(any::<bool>())));
    (".*", ".*", any::<[bool; 5]>(), backend_and_pages(), overrides, serial, lazy).prop_map(
        |(snapshot_path, path, flags, (backend_type, huge_pages), drive_overrides, serial_override, lazy)| {
            let [is_former, track_dirty_pages, enable_diff_snapshots, resume_vm, clock_realtime] = flags;
            let (mem_backend, mem_file_path) = match is_former {
                true => (None, Some(path)),
                false => (Some(MemBackend { backend_type, backend_path: path }), None),
            };
            SnapshotLoad {
                snapshot_path,
                mem_backend,
                mem_file_path,
                track_dirty_pages,
                enable_diff_snapshots,
                resume_vm,
                clock_realtime,
                huge_pages,
                drive_overrides,
                serial_override,
                lazy: lazy.map(|(fill_mib_s, working_set)| LazyOptions { fill_mib_s, working_set }),
                ..SnapshotLoad::default()
            }
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        Just(Request::GetInstanceInfo),
        Just(Request::GetVersion),
        Just(Request::GetVmConfig),
        Just(Request::GetMachineConfig),
        Just(Request::GetPrometheus),
        boot_source().prop_map(Request::PutBootSource),
        machine_config().prop_map(Request::PutMachineConfig),
        machine_patch().prop_map(Request::PatchMachineConfig),
        drive().prop_map(Request::PutDrive),
        drive_patch().prop_map(Request::PatchDrive),
        option::of(limiter()).prop_map(|rate_limiter| Request::PutEntropy(Entropy { rate_limiter })),
        (option::of(".*"), option::of(bucket())).prop_map(|(serial_out_path, rate_limiter)| {
            Request::PutSerial(Serial { serial_out_path, rate_limiter })
        }),
        logger().prop_map(Request::PutLogger),
        metrics().prop_map(Request::PutMetrics),
        Just(Request::PutAction(Action::FlushMetrics)),
        Just(Request::PutAction(Action::InstanceStart)),
        Just(Request::PutAction(Action::SendCtrlAltDel)),
        Just(Request::PatchVm(VmState::Paused)),
        Just(Request::PatchVm(VmState::Resumed)),
        snapshot_create().prop_map(Request::CreateSnapshot),
        ".*".prop_map(|backend_path| Request::PutSnapshotHandler(SnapshotHandler { backend_path })),
        snapshot_load().prop_map(|load| Request::LoadSnapshot(Box::new(load))),
    ]
}

proptest! {
    #[test]
    fn what_is_rendered_is_parsed_back(request in request()) {
        let (method, path, body) = request.render();
        let parsed = Request::parse(&method, &path, &body.unwrap_or_default()).unwrap();
        prop_assert_eq!(parsed.request, request);
    }

    #[test]
    fn no_bytes_make_the_parser_panic(
        method in prop_oneof![Just(Method::GET), Just(Method::PUT), Just(Method::PATCH), Just(Method::POST)],
        path in prop_oneof![".*", "/(drives|machine-config|vm|actions|logger|metrics|serial|entropy|boot-source|snapshot)(/.*)?"],
        body in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..256),
            ".*".prop_map(String::into_bytes),
            r#"\{("[a-z_]{1,12}": ?("[^"]{0,8}"|[0-9]{1,20}|null|true|\{\}),? ?){0,4}\}"#.prop_map(String::into_bytes),
        ],
    ) {
        let _ = Request::parse(&method, &path, &body);
    }

    #[test]
    fn a_cut_body_is_refused(request in request(), cut in any::<prop::sample::Index>()) {
        let (method, path, body) = request.render();
        if let Some(body) = body {
            let half = &body[..cut.index(body.len())];
            prop_assert!(Request::parse(&method, &path, half).is_err());
        }
    }
}
