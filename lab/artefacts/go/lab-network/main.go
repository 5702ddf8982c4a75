// Command lab-network is the network of a lab whose hosts run under User Mode Linux. It is one process that
// needs no privileges, namespaces or TAP devices.
//
// Each host has two network cards. Each card is a SOCK_SEQPACKET socket that carries one Ethernet frame per
// packet (the kernel's `bess` transport). `nat` connects to the host's own router, which works like QEMU's user
// network: it provides DHCP, outgoing connections, and forwarded ports on 127.0.0.1. `lan` connects to a switch
// that all hosts share.
//
// The router is gvisor-tap-vsock, which Podman uses for the same purpose. The switch is implemented here
// because the library's switch waits for its slowest port: one hung host would block the whole LAN.
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

// The addresses of QEMU's user network. The hosts' configuration files contain them.
const (
	subnet     = "10.0.2.0/24"
	gateway    = "10.0.2.2" // 127.0.0.1 of this machine
	resolver   = "10.0.2.3" // this machine's resolver
	guest      = "10.0.2.15"
	gatewayMAC = "52:55:0a:00:02:02"
	mtu        = 1500
)

type config struct {
	PidFile  string `json:"pid_file"` // written once all sockets and ports are open
	Resolver string `json:"resolver"` // IPv4 address of this machine's resolver, or empty
	Hosts    []host `json:"hosts"`
}

type host struct {
	Name     string            `json:"name"`
	MAC      string            `json:"mac"`      // of the card connected to the router
	NAT      string            `json:"nat"`      // path of that card's socket
	LAN      string            `json:"lan"`      // path of the other card's socket
	Forwards map[string]uint16 `json:"forwards"` // address on this machine to TCP port on the host
}

func main() {
	log.SetFlags(0)
	// The library logs an error whenever a host disconnects, but here that is only a reboot.
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
			// An error only means that the host has shut down or rebooted.
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

// router returns the configuration of a router that looks to the host like QEMU's user network.
func router(h host, nameserver string) *types.Configuration {
	forwards := map[string]string{}
	for address, port := range h.Forwards {
		forwards[address] = net.JoinHostPort(guest, strconv.Itoa(int(port)))
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

// serve listens on a card's socket and passes each connection to handle. A new connection replaces the previous
// one, because a host that reboots in place leaves its old sockets open without reading from them.
func serve(path string, failed chan<- error, handle func(*net.UnixConn)) error {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	listener, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return err
	}
	go func() {
		var previous *net.UnixConn
		for {
			conn, err := listener.AcceptUnix()
			if err != nil {
				failed <- fmt.Errorf("%s: %w", path, err)
				return
			}
			if previous != nil {
				_ = previous.Close()
			}
			previous = conn
			handle(conn)
		}
	}()
	return nil
}
