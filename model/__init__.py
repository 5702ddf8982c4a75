"""What can be known without a machine: settings, kubeadm's files, manifests, IPVS tables. All pure."""
