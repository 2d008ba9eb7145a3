//! The network of a machine, in the two forms that guests read: cloud-init's version 2 (netplan), and OpenStack's.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::check::parse_address;
use super::spec::{InterfaceSpec, NetworkSpec};

/// What a card is called, and the MAC address by which it is found.
fn card<'a>(at: usize, interface: &'a InterfaceSpec, own_mac: &'a str) -> (String, Option<String>) {
    let name = interface.name.clone().unwrap_or_else(|| format!("nic{at}"));
    let mac = match &interface.mac {
        Some(mac) => Some(mac.to_lowercase()),
        // A name alone finds a card, too.
        None if at == 0 || interface.name.is_none() => Some(own_mac.to_owned()),
        None => None,
    };
    (name, mac)
}

/// cloud-init's network-config, version 2.
pub(super) fn version_2(spec: &NetworkSpec, own_mac: &str) -> Value {
    let mut ethernets = Map::new();
    for (at, interface) in spec.interfaces.iter().enumerate() {
        let (name, mac) = card(at, interface, own_mac);
        let mut config = Map::new();
        if let Some(mac) = mac {
            config.insert("match".to_owned(), json!({ "macaddress": mac }));
            config.insert("set-name".to_owned(), json!(name));
        }
        config.insert("dhcp4".to_owned(), json!(interface.dhcp4));
        config.insert("dhcp6".to_owned(), json!(interface.dhcp6));
        if !interface.addresses.is_empty() {
            config.insert("addresses".to_owned(), json!(interface.addresses));
        }
        let routes: Vec<Value> = [
            interface.gateway4.map(|via| json!({ "to": "0.0.0.0/0", "via": via })),
            interface.gateway6.map(|via| json!({ "to": "::/0", "via": via })),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !routes.is_empty() {
            config.insert("routes".to_owned(), routes.into());
        }
        if !interface.nameservers.is_empty() || !interface.search.is_empty() {
            let names = json!({ "addresses": interface.nameservers, "search": interface.search });
            config.insert("nameservers".to_owned(), names);
        }
        if let Some(mtu) = interface.mtu {
            config.insert("mtu".to_owned(), json!(mtu));
        }
        ethernets.insert(name, Value::Object(config));
    }
    json!({ "version": 2, "ethernets": ethernets })
}

/// OpenStack's `network_data.json`.
pub(super) fn openstack(spec: &NetworkSpec, own_mac: &str) -> Value {
    let (mut links, mut networks, mut services) = (Vec::new(), Vec::new(), Vec::new());
    for (at, interface) in spec.interfaces.iter().enumerate() {
        let (name, mac) = card(at, interface, own_mac);
        let mut link =
            json!({ "id": name, "type": "phy", "ethernet_mac_address": mac.unwrap_or_else(|| own_mac.to_owned()) });
        if let Some(mtu) = interface.mtu {
            link["mtu"] = json!(mtu);
        }
        links.push(link);
        let mut network = |kind: &str| {
            let id = format!("network{}", networks.len());
            networks.push(json!({ "id": id, "link": name, "type": kind }));
            networks.len() - 1
        };
        if interface.dhcp4 {
            network("ipv4_dhcp");
        }
        if interface.dhcp6 {
            network("ipv6_dhcp");
        }
        let fixed: Vec<(usize, IpAddr, u8)> = interface
            .addresses
            .iter()
            .filter_map(|address| parse_address(address).ok())
            .map(|(address, length)| (network(if address.is_ipv4() { "ipv4" } else { "ipv6" }), address, length))
            .collect();
        let (mut routed4, mut routed6) = (false, false);
        for (at, address, length) in fixed {
            let network = &mut networks[at];
            network["ip_address"] = json!(address);
            network["netmask"] = json!(netmask(address, length));
            // A default way belongs to the first address of its family.
            let (routed, way, any) = match address {
                IpAddr::V4(_) => (&mut routed4, interface.gateway4.map(IpAddr::from), "0.0.0.0"),
                IpAddr::V6(_) => (&mut routed6, interface.gateway6.map(IpAddr::from), "::"),
            };
            if let Some(gateway) = way.filter(|_| !*routed) {
                network["routes"] = json!([{ "network": any, "netmask": any, "gateway": gateway }]);
                *routed = true;
            }
        }
        services.extend(interface.nameservers.iter().map(|address| json!({ "type": "dns", "address": address })));
    }
    json!({ "links": links, "networks": networks, "services": services })
}

fn netmask(address: IpAddr, length: u8) -> String {
    match address {
        IpAddr::V4(_) => {
            std::net::Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)).to_string()
        }
        IpAddr::V6(_) => {
            std::net::Ipv6Addr::from(u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)).to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> NetworkSpec {
        toml::from_str(
            "[[interfaces]]\naddresses = ['10.0.0.5/24', 'fd00::5/64']\ngateway4 = '10.0.0.1'\ngateway6 = 'fd00::1'\nnameservers = ['9.9.9.9']\nmtu = 1400\n\
             [[interfaces]]\nname = 'lan1'\nmac = '52:54:00:AA:00:01'\ndhcp4 = true",
        )
        .unwrap()
    }

    #[test]
    fn cloud_init_finds_its_cards_by_mac() {
        let config = version_2(&spec(), "02:00:00:00:00:01");
        let first = &config["ethernets"]["nic0"];
        assert_eq!(first["match"]["macaddress"], "02:00:00:00:00:01");
        assert_eq!(first["routes"][0], json!({ "to": "0.0.0.0/0", "via": "10.0.0.1" }));
        assert_eq!(first["routes"][1]["via"], "fd00::1");
        assert_eq!(config["ethernets"]["lan1"]["match"]["macaddress"], "52:54:00:aa:00:01");
    }

    #[test]
    fn openstack_has_a_network_for_each_address() {
        let data = openstack(&spec(), "02:00:00:00:00:01");
        assert_eq!(data["networks"].as_array().unwrap().len(), 3);
        assert_eq!(data["networks"][0]["netmask"], "255.255.255.0");
        assert_eq!(data["networks"][1]["netmask"], "ffff:ffff:ffff:ffff::");
        assert_eq!(data["networks"][0]["routes"][0]["gateway"], "10.0.0.1");
        assert_eq!(data["networks"][2], json!({ "id": "network2", "link": "lan1", "type": "ipv4_dhcp" }));
        assert_eq!(data["services"][0]["address"], "9.9.9.9");
        assert_eq!(
            (netmask([0, 0, 0, 0].into(), 0), netmask([0, 0, 0, 0].into(), 32)),
            ("0.0.0.0".into(), "255.255.255.255".into())
        );
    }
}
