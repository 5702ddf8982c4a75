package main

import (
	"net"
	"sync"
	"syscall"
)

const (
	addressBytes = 6
	headerBytes  = 14
	frameBytes   = 64 << 10
)

type address [addressBytes]byte

// group reports whether the address is a broadcast or multicast address.
func (a address) group() bool { return a[0]&1 != 0 }

// lanSwitch is a learning Ethernet switch. Like a real switch it drops frames that a port can't accept
// immediately, so a hung host doesn't block the others.
type lanSwitch struct {
	lock  sync.Mutex
	ports []*port
	known map[address]*port
}

// port is a switch port for one host.
type port struct {
	lan  *lanSwitch
	conn *net.UnixConn // nil while the host is off
}

func newSwitch() *lanSwitch { return &lanSwitch{known: map[address]*port{}} }

func (s *lanSwitch) addPort() *port {
	s.lock.Lock()
	defer s.lock.Unlock()
	p := &port{lan: s}
	s.ports = append(s.ports, p)
	return p
}

// plug connects a host to the port.
func (p *port) plug(conn *net.UnixConn) {
	p.lan.lock.Lock()
	defer p.lan.lock.Unlock()
	p.conn = conn
	go p.receive(conn)
}

// receive forwards a host's frames until its connection ends.
func (p *port) receive(conn *net.UnixConn) {
	frame := make([]byte, frameBytes)
	for {
		size, err := conn.Read(frame)
		if err != nil {
			break
		}
		if size >= headerBytes {
			p.lan.forward(p, frame[:size])
		}
	}
	p.lan.lock.Lock()
	defer p.lan.lock.Unlock()
	if p.conn == conn {
		p.conn = nil
	}
	_ = conn.Close()
}

// forward sends a frame to the port that last used the destination address, or to all other ports if the
// address is unknown or a group address.
func (s *lanSwitch) forward(from *port, frame []byte) {
	destination, source := address(frame[:addressBytes]), address(frame[addressBytes:2*addressBytes])
	s.lock.Lock()
	defer s.lock.Unlock()
	if !source.group() {
		s.known[source] = from
	}
	if to, ok := s.known[destination]; ok && !destination.group() {
		if to != from {
			to.send(frame)
		}
		return
	}
	for _, to := range s.ports {
		if to != from {
			to.send(frame)
		}
	}
}

// send sends a frame without waiting. The caller must hold the switch's lock.
func (p *port) send(frame []byte) {
	if p.conn == nil {
		return
	}
	raw, err := p.conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Write(func(descriptor uintptr) bool {
		_ = syscall.Sendto(int(descriptor), frame, syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL, nil)
		return true
	})
}
