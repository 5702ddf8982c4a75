// Command lab-network is the network of a lab whose hosts run under User Mode Linux, in one process without
// privileges, namespaces or TAP devices.
//
// Each host has two network cards, each a SOCK_SEQPACKET socket that carries one Ethernet frame a packet (the
// kernel's `bess` transport): `nat` leads to a router of the host's own, as QEMU's user network does, with
// DHCP, the way out, and ports of 127.0.0.1 that lead in; `lan` leads to the switch that the hosts share.
//
// The router is gvisor-tap-vsock, which Podman uses for the same. The switch is this program's own, since that
// library's waits for its slowest port: a host that stands still would stop the whole LAN.
//
//	lab-network CONFIG.json
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"os"
	"strconv"

	"github.com/containers/gvisor-tap-vsock/pkg/types"
	"github.com/containers/gvisor-tap-vsock/pkg/virtualnetwork"
	"github.com/sirupsen/logrus"
)

// The addresses of QEMU's user network, which the hosts' files name.
const (
	subnet     = "10.0.2.0/24"
	gateway    = "10.0.2.2" // 127.0.0.1 of this machine
	resolver   = "10.0.2.3" // this machine's resolver
	guest      = "10.0.2.15"
	gatewayMAC = "52:55:0a:00:02:02"
	mtu        = 1500
)

type config struct {
	PidFile  string `json:"pid_file"` // written when all sockets and ports are open
	Resolver string `json:"resolver"` // IPv4 address of this machine's resolver; may be empty
	Hosts    []host `json:"hosts"`
}

type host struct {
	Name     string            `json:"name"`
	MAC      string            `json:"mac"`      // of the card on the router
	NAT      string            `json:"nat"`      // path of that card's socket
	LAN      string            `json:"lan"`      // path of the other card's socket
	Forwards map[string]uint16 `json:"forwards"` // address on this machine -> the host's TCP port
}

func main() {
	log.SetFlags(0)
	// Each host that goes away is an error to the library; here it is a host that reboots.
	logrus.SetLevel(logrus.FatalLevel)
	if len(os.Args) != 2 {
		log.Fatal("usage: lab-network CONFIG.json")
	}
	if err := run(os.Args[1]); err != nil {
		log.Fatalf("lab-network: %v", err)
	}
}

func run(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var settings config
	if err := json.Unmarshal(text, &settings); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	failed := make(chan error)
	lan := newSwitch()
	for _, h := range settings.Hosts {
		network, err := virtualnetwork.New(router(h, settings.Resolver))
		if err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		port := lan.addPort()
		err = serve(h.NAT, failed, func(conn *net.UnixConn) {
			// An error means that the host has gone or has rebooted, which is its right.
			go func() { _ = network.AcceptBess(context.Background(), conn) }()
		})
		if err != nil {
			return err
		}
		if err := serve(h.LAN, failed, port.plug); err != nil {
			return err
		}
	}
	if err := os.WriteFile(settings.PidFile, []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		return err
	}
	return <-failed
}

// router is what QEMU's user network shows to a host.
func router(h host, nameserver string) *types.Configuration {
	forwards := map[string]string{}
	for outside, port := range h.Forwards {
		forwards[outside] = net.JoinHostPort(guest, strconv.Itoa(int(port)))
	}
	nat := map[string]string{gateway: "127.0.0.1"}
	if nameserver != "" {
		nat[resolver] = nameserver
	}
	return &types.Configuration{
		MTU:               mtu,
		Subnet:            subnet,
		GatewayIP:         gateway,
		GatewayMacAddress: gatewayMAC,
		GatewayVirtualIPs: []string{gateway, resolver},
		DHCPStaticLeases:  map[string]string{guest: h.MAC},
		Forwards:          forwards,
		NAT:               nat,
		Protocol:          types.BessProtocol,
	}
}

// serve listens on a card's socket and hands over its connections in their order. A later one takes the place of an earlier
// one: a host that reboots in place leaves its former sockets open, and nobody reads them any more.
func serve(path string, failed chan<- error, use func(*net.UnixConn)) error {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	listener, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return err
	}
	go func() {
		var former *net.UnixConn
		for {
			conn, err := listener.AcceptUnix()
			if err != nil {
				failed <- fmt.Errorf("%s: %w", path, err)
				return
			}
			if former != nil {
				_ = former.Close()
			}
			former = conn
			use(conn)
		}
	}()
	return nil
}
