//! The configuration file: what is accepted, what is refused and how, and that no bytes make the reader panic.

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn read(document: Value) -> Result<VmConfig, ConfigError> {
    VmConfig::from_json(document.to_string().as_bytes())
}

fn refusal(document: Value) -> String {
    read(document).unwrap_err().to_string()
}

#[test]
fn a_file_written_for_firecracker_is_read() {
    let config = read(json!({
        "boot-source": {"kernel_image_path": "vmlinux", "boot_args": "console=ttyS0", "initrd_path": null},
        "drives": [{
            "drive_id": "rootfs", "partuuid": null, "is_root_device": true, "cache_type": "Unsafe",
            "is_read_only": false, "path_on_host": "root.ext4", "io_engine": "Sync", "rate_limiter": null,
            "socket": null
        }],
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 1024, "smt": false, "track_dirty_pages": false,
            "huge_pages": "None"},
        "cpu-config": null, "balloon": null, "network-interfaces": [], "vsock": null, "logger": null,
        "metrics": null, "mmds-config": null, "entropy": {}, "pmem": [], "memory-hotplug": null
    }))
    .unwrap();
    assert_eq!(config.boot_source.unwrap().kernel_image_path, "vmlinux");
    assert_eq!(config.machine_config.unwrap().mem_size_mib, 1024);
    assert_eq!(config.drives[0].path_on_host.as_deref(), Some("root.ext4"));
    assert_eq!(config.entropy, Some(Entropy { rate_limiter: None }));
}

#[test]
fn what_is_answered_can_be_given_as_a_file() {
    let config = VmConfig {
        machine_config: Some(MachineConfig::default()),
        boot_source: Some(BootSource { kernel_image_path: "k".to_owned(), ..BootSource::default() }),
        ..VmConfig::default()
    };
    let text = serde_json::to_vec(&config).unwrap();
    assert_eq!(VmConfig::from_json(&text).unwrap(), config);
}

#[test]
fn sections_without_support_are_answered_as_empty() {
    let answer = serde_json::to_value(VmConfig::default()).unwrap();
    assert_eq!(answer["balloon"], Value::Null);
    assert_eq!(answer["network-interfaces"], json!([]));
    assert_eq!(answer["pmem"], json!([]));
}

#[test]
fn sections_without_support_are_refused_by_name() {
    for name in UNSUPPORTED {
        let refusal = refusal(json!({ name: {"any": "thing"} }));
        assert!(refusal.contains(name) && refusal.contains("remove it"), "{refusal}");
        assert!(refusal_is_absent(name, json!({})) && refusal_is_absent(name, json!([])));
    }
}

fn refusal_is_absent(name: &str, section: Value) -> bool {
    read(json!({ name: section })).is_ok()
}

#[test]
fn mistakes_are_refused_with_their_place() {
    assert!(refusal(json!({"boot-sauce": {}})).contains("unknown field `boot-sauce`"));
    let typo = refusal(json!({"machine-config": {"vcpu_count": 1, "mem_size_mib": 128, "ht_enabled": true}}));
    assert!(typo.contains("unknown field `ht_enabled`") && typo.contains("line 1"), "{typo}");
    let kind = refusal(json!({"machine-config": {"vcpu_count": "1", "mem_size_mib": 128}}));
    assert!(kind.contains("invalid type: string"), "{kind}");
    let text = VmConfig::from_json(b"{\"drives\": [").unwrap_err().to_string();
    assert!(text.contains("EOF"), "{text}");
}

#[test]
fn values_the_requests_refuse_are_refused_in_a_file() {
    let machine = |vcpu_count: u8, mem_size_mib: u64| {
        refusal(json!({"machine-config": {"vcpu_count": vcpu_count, "mem_size_mib": mem_size_mib}}))
    };
    assert!(machine(0, 128).contains("number of vCPUs"));
    assert!(machine(33, 128).contains("number of vCPUs"));
    assert!(machine(1, 0).contains("memory size"));
    let drive =
        refusal(json!({"drives": [{"drive_id": "a-b", "is_root_device": false, "path_on_host": "x"}]}));
    assert!(drive.contains("alphanumeric"), "{drive}");
}

/// JSON documents that look like configuration files more often than random ones would.
fn document() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-zA-Z0-9_/. -]{0,12}".prop_map(Value::from),
    ];
    let name = prop_oneof![
        Just("drives"),
        Just("boot-source"),
        Just("machine-config"),
        Just("entropy"),
        Just("serial"),
        Just("logger"),
        Just("level"),
        Just("metrics"),
        Just("metrics_path"),
        Just("vcpu_count"),
        Just("mem_size_mib"),
        Just("drive_id"),
        Just("is_root_device"),
        Just("rate_limiter"),
        Just("kernel_image_path"),
        Just("vsock"),
        Just("nonsense"),
    ];
    leaf.prop_recursive(4, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(name.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn bytes_never_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = VmConfig::from_json(&bytes);
    }

    #[test]
    fn what_is_accepted_is_valid_and_is_written_as_it_was_read(document in document()) {
        if let Ok(config) = read(document) {
            prop_assert_eq!(config.validate(), Ok(()));
            let text = serde_json::to_vec(&config).unwrap();
            prop_assert_eq!(VmConfig::from_json(&text).unwrap(), config);
        }
    }
}
