module kubeadm-ipvs/build/coredns-1.13.1

go 1.25.0

require github.com/coredns/coredns v1.13.1
