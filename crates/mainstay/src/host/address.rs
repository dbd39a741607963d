//! What this host shows of the virtual address: the interface for it, who has it here, and who answers for it in the network.

use super::{Seen, text};
use mainstay_agent::address::{Addresses as _, Beside, Kernel, label};
use mainstay_model::NodeId;
use mainstay_model::spec::Node;
use mainstay_plan::doctor::facts::{AddressWay, Answering, Reading};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::net::{UdpSocket, lookup_host};

/// Where nobody listens, mostly: whoever is asked for it has to be found in the network first.
const DISCARD: u16 = 9;
/// How long somebody may take to answer.
const ANSWER: Duration = Duration::from_millis(1200);
/// Who was found, as the kernel remembers it.
const NEIGHBOURS: &str = "/proc/net/arp";

/// `None`: there is to be none, or not on a witness.
pub(super) async fn read(seen: &Seen, node: &Node) -> Option<Reading<AddressWay>> {
    let spec = seen.spec();
    let address = spec.proxy.address.filter(|_| !node.witness)?.address;
    let of_host = first(&node.host).await;
    let known = || -> Reading<(String, Beside, Option<u32>)> {
        let mut kernel = Kernel::open().map_err(|error| error.to_string())?;
        let interface = kernel.interface(node.interface.as_deref(), of_host).map_err(|error| error.to_string())?;
        let label = label(&spec.cluster.name, &node.name);
        let beside = kernel.beside(&interface, address, &label).map_err(|error| error.to_string())?;
        let foreign = kernel.foreign(address, &label).map_err(|error| error.to_string())?;
        Ok((interface.name, beside, foreign))
    };
    let (interface, Beside { held, own }, foreign) = match known() {
        Ok(known) => known,
        Err(why) => return Some(Err(why)),
    };
    let mut hosts = Vec::new();
    for other in spec.nodes.iter().filter(|other| other.name != node.name) {
        hosts.extend(first(&other.host).await.map(|host| (other.name.clone(), host)));
    }
    for asked in hosts.iter().map(|(_, host)| *host).chain([address]) {
        ask(asked).await;
    }
    tokio::time::sleep(ANSWER).await;
    let neighbours = match text(NEIGHBOURS) {
        Ok(neighbours) => neighbours,
        Err(why) => return Some(Err(why)),
    };
    let answers = answering(&neighbours, address, &hosts);
    let told = seen.status.as_ref().and_then(|status| status.routes.address.as_ref());
    let holders = told.filter(|told| told.address.split('/').next() == Some(&address.to_string()));
    let holders = holders.map(|told| told.held_by.clone());
    Some(Ok(AddressWay { interface, own, held, foreign, answers, holders }))
}

async fn first(host: &str) -> Option<Ipv4Addr> {
    let found = tokio::time::timeout(ANSWER, lookup_host((host, DISCARD))).await.ok()?.ok()?;
    found.map(|address| address.ip()).find_map(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None })
}

async fn ask(address: Ipv4Addr) {
    if let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await {
        let _ = socket.send_to(b"", SocketAddr::from((address, DISCARD))).await;
    }
}

fn answering(neighbours: &str, address: Ipv4Addr, hosts: &[(NodeId, Ipv4Addr)]) -> Option<Answering> {
    let hardware = hardware_of(neighbours, address)?;
    let same =
        |(_, host): &&(NodeId, Ipv4Addr)| hardware_of(neighbours, *host).is_some_and(|theirs| theirs == hardware);
    let node = hosts.iter().find(same).map(|(node, _)| node.clone());
    Some(Answering { hardware: hardware.to_owned(), node })
}

/// The hardware address of a neighbour that has answered.
fn hardware_of(neighbours: &str, address: Ipv4Addr) -> Option<&str> {
    let wanted = address.to_string();
    neighbours.lines().skip(1).find_map(|line| {
        let mut words = line.split_whitespace();
        let (there, _, flags, hardware) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let flags = u32::from_str_radix(flags.strip_prefix("0x")?, 16).ok()?;
        (there == wanted && flags & 2 != 0 && hardware != "00:00:00:00:00:00").then_some(hardware)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_answers_is_a_node_or_a_stranger() {
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
                     10.0.0.1         0x1         0x2         02:00:00:00:00:01     *        eth0\n\
                     10.0.0.2         0x1         0x0         00:00:00:00:00:00     *        eth0\n\
                     10.0.0.100       0x1         0x2         02:00:00:00:00:01     *        eth0\n\
                     10.0.0.101       0x1         0x2         02:00:00:00:00:09     *        eth0\n";
        let db1: NodeId = "db1".parse().unwrap();
        let hosts = [(db1.clone(), Ipv4Addr::new(10, 0, 0, 1)), ("db2".parse().unwrap(), Ipv4Addr::new(10, 0, 0, 2))];
        let of = |last| answering(table, Ipv4Addr::new(10, 0, 0, last), &hosts);
        assert_eq!(of(100).unwrap().node, Some(db1));
        assert_eq!(of(101).unwrap(), Answering { hardware: "02:00:00:00:00:09".into(), node: None });
        assert_eq!((of(2), of(7)), (None, None));
    }
}
