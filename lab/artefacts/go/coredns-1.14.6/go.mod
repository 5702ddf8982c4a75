module kubeadm-ipvs/build/coredns-1.14.6

go 1.25.0

require github.com/coredns/coredns v1.14.6
