module kubeadm-ipvs/build/pulumi-language-python

go 1.25.11

require github.com/pulumi/pulumi/sdk/v3 v3.78.1
