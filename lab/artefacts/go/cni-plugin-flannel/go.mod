module kubeadm-ipvs/build/cni-plugin-flannel

go 1.13

require github.com/containernetworking/plugins v0.9.1
